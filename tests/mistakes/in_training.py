"""Mistakes in training and embedding, from the command line and from Python."""

from __future__ import annotations

import sys
from collections.abc import Callable

from tests.mistakes.world import Mistake, World


def _fit(*argv: str, **data: object):
    return lambda world: ["fit", "-c", world.config(**data), *argv]


def _text_config(text: str):
    def make(world: World) -> list[str]:
        (world.root / "fit.yaml").write_text(text)
        return ["fit", "-c", "fit.yaml"]

    return make


def _command(*argv: str):
    return lambda _: list(argv)


def _not_a_checkpoint(world: World) -> list[str]:
    (world.root / "last.ckpt").write_bytes(b"not a checkpoint")
    return ["predict", "--ckpt", "last.ckpt", "--out", "new.parquet"]


def _module(**data: object) -> Callable[[World], Callable[[], object]]:
    def make(world: World) -> Callable[[], object]:
        def call() -> object:
            from dynaclr_wds import MultiExperimentDataModule

            module = MultiExperimentDataModule(str(world.root / "shards"), **{"tau_range": (0.5, 1.5), **data})
            module.setup("fit")
            return module.train_dataloader()

        return call

    return make


IN_TRAINING = [
    Mistake(what="Gives a config that is not there", make=_command("fit", "-c", "configs/fti.yaml")),
    Mistake(what="Gives no config", make=_command("fit")),
    Mistake(what="Misspells a key of the config", make=_fit(bacth_size=64)),
    Mistake(what="Misspells an option", make=_fit("--data.batchsize", "64")),
    Mistake(what="Gives text for a number", make=_fit("--data.batch_size", "many")),
    Mistake(
        what="Names an encoder class that is not there",
        make=_fit("--model.encoder.class_path", "dynaclr_wds.train.encoder.Resnet"),
    ),
    Mistake(what="Names a backbone that is not there", make=_fit("--model.encoder.init_args.backbone", "resnet99")),
    Mistake(what="Freezes a part that is not there", make=_fit("--model.freeze", "[stem]")),
    Mistake(what="Begins with a checkpoint that is not there", make=_fit("--model.init_from", "{path: first.ckpt}")),
    Mistake(
        what="Predicts a label that the shards lack",
        make=_fit("--model.encoder.init_args.in_stack_depth", "3", "--model.auxiliary_heads", "{gene: {label: gene}}"),
    ),
    Mistake(what="Misspells a key of a head", make=_fit("--model.auxiliary_heads", "{gene: {labels: condition}}")),
    Mistake(what="Writes a config that is not YAML", make=_text_config("data: [1, 2\n")),
    Mistake(what="Names shards that are not there", make=_fit(shards="shard")),
    Mistake(what="Names shards in a bucket, without keys", make=_fit(shards="s3://bucket/shards")),
    Mistake(what="Holds out an experiment that is not there", make=_fit(val_experiments=["e9"])),
    Mistake(what="Holds out every experiment", make=_fit(val_experiments=["e0", "e1"])),
    Mistake(what="Splits by field of view without saying how", make=_fit(split="fovs")),
    Mistake(what="Splits by field of view and names experiments", make=_fit(split="fovs", val_experiments=["e1"])),
    Mistake(what="Splits so that no field of view is held out", make=_fit(split="fovs", split_ratio=0.97)),
    Mistake(what="Splits by a label that there is not", make=_fit(split="donor", split_ratio=0.8)),
    Mistake(what="Leaves out a field of view that is not there", make=_fit(exclude_fovs={"e0": ["A/1/9"]})),
    Mistake(what="Wants a name for a label that there is not", make=_fit(meta_names={"perturbation": "treatment"})),
    Mistake(
        what="Tells the network of other channels than the shards have",
        make=_fit("--model.encoder.init_args.in_channels", "3"),
    ),
    Mistake(what="Crops more than is stored", make=_fit(final_yx_patch_size=[128, 128])),
    Mistake(what="Asks for slices that are not stored", make=_fit(z_range=[0, 9])),
    Mistake(what="Asks for a batch of 0", make=_fit(batch_size=0)),
    Mistake(what="Leaks more than everything", make=_fit(leaky=1.5)),
    Mistake(what="Gives a weight for an unknown experiment", make=_fit(experiment_weights={"e0": 1.0, "e5": 2.0})),
    Mistake(what="Gives a ratio for an unknown condition", make=_fit(condition_ratio={"mock": 1.0})),
    Mistake(what="Gives more streams than there is room for", make=_fit(window_bytes=100_000, num_streams=64)),
    Mistake(
        what="Compares with negatives that are not read",
        make=_fit("--model.loss.class_path", "torch.nn.TripletMarginLoss"),
    ),
    Mistake(
        what="Asks for a GPU that is not there",
        make=_fit("--trainer.accelerator", "cuda" if sys.platform == "darwin" else "mps"),
    ),
    Mistake(what="Resumes from a file that is not there", make=_fit("--ckpt_path", "lost.ckpt")),
    Mistake(what="Embeds without a checkpoint", make=_command("predict", "--out", "new.parquet")),
    Mistake(what="Embeds with a file that is no checkpoint", make=_not_a_checkpoint),
    Mistake(
        what="Embeds with a checkpoint that is not there",
        make=_command("predict", "--ckpt", "lost.ckpt", "--out", "new.parquet"),
    ),
    Mistake(
        what="Validates without a checkpoint",
        make=lambda world: ["validate", "-c", world.config(val_experiments=["e1"])],
    ),
    Mistake(
        what="Validates with nothing held out",
        make=lambda world: ["validate", "-c", world.config(), "--ckpt_path", "lost.ckpt"],
    ),
    Mistake(what="Holds out an unknown experiment, from Python", make=_module(val_experiments=["e9"])),
    Mistake(what="Asks for a τ beyond the shards', from Python", make=_module(tau_range=(0.5, 9.0))),
    Mistake(what="Gives a window that is too small, from Python", make=_module(window_bytes=1000)),
]
