"""Shards to a Trainer: the DataModule that users name in their config. It is glue; every decision is made elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from dynaclr_wds.build import build_from_yaml
from dynaclr_wds.describe import ModuleOrDescription, keep_arguments, make_modules
from dynaclr_wds.fov_names import check_experiments, keep_experiments, keep_fovs
from dynaclr_wds.plan.audit.window_offers import window_as_typed
from dynaclr_wds.plan.batch import BatchPlan
from dynaclr_wds.plan.channels import ChannelChoices
from dynaclr_wds.plan.config import (
    PositiveChannel,
    PositiveKind,
    PositiveRelatives,
    PositiveRule,
    SamplingConfig,
    TauDirection,
)
from dynaclr_wds.plan.index import PlanIndex
from dynaclr_wds.plan.sampler import FlexibleBatchSampler
from dynaclr_wds.plan.streaming.window import parse_window
from dynaclr_wds.plan.validation import plan_validation
from dynaclr_wds.read.crop import Crop, check_one_shape, plan_crop
from dynaclr_wds.read.dataset import MultiExperimentTripletDataset, list_observations
from dynaclr_wds.read.loader import ThreadDataLoader
from dynaclr_wds.read.metadata import check_meta_names
from dynaclr_wds.read.opening import open_store
from dynaclr_wds.read.side_stream import SideStreams
from dynaclr_wds.read.substitution import Substitution, check_on_shard_error
from dynaclr_wds.set_versions import check_version, describe_version
from dynaclr_wds.shardset import ShardSet
from dynaclr_wds.split import Side, Split
from dynaclr_wds.split_config import EXPERIMENTS, SplitConfig
from dynaclr_wds.storage.byte_cache import parse_limit
from dynaclr_wds.storage.options import kept_options, parse_options
from dynaclr_wds.transforms.batch import BatchTransform, shown_shape
from dynaclr_wds.transforms.channel_dropout import ChannelDropout, describe_channel_dropout
from dynaclr_wds.transforms.dictionary import DictTransform
from dynaclr_wds.transforms.fixed_draws import fixed_draws
from dynaclr_wds.transforms.statistics import StatisticsNormalization
from dynaclr_wds.transforms.z_reduction import LABELFREE, MIP, plan_z_reduction, table_labelfree
from dynaclr_wds.words import count_of
from dynaclr_wds.world import World, detect_world

DROPPED = (1,)
"""Channels that are dropped unless others are named: the fluorescence of two, so that the label-free one is learned."""


class MultiExperimentDataModule(LightningDataModule):
    """Triplets of many experiments, split into training and validation by experiment, field of view or label.

    Parameters
    ----------
    shards
        Folder that `dynaclr-wds build` wrote, or the URL of its copy: `s3://bucket/prefix`, `gs://`, `az://`,
        `https://`.
    experiments_yaml
        When given, shards that are absent or of another config are built from it first, once per node.
    z_range
        Slices of the plates' stack, start and stop, within the stored ones; None = all that is stored.
    yx_patch_size
        (Y, X) to read around each cell, in pixels; may be less than what is stored; None = all of it.
    final_yx_patch_size
        (Y, X) that the network sees, cropped after augmentation; None = `yx_patch_size`.
    final_z
        Slices that are left of each stack, cropped to the centre after augmentation; None = all.
    z_reduction
        Makes one slice of each stack in the end: name of a channel or marker, `fluorescence`, `labelfree` or `default`
        → `mip` (maximum over Z) or `center`; the first of these that fits a channel decides. None = stacks stay.
    split
        What is held out for validation as a whole: `experiments`, `fovs` (fields of view), or a label, of which values
        are held out. A lineage that has a held-out value anywhere is held out entirely.
    split_ratio
        Share of training, in (0, 1]: the side of each experiment, FOV or value is drawn by its own name, so it stays
        when data are added. None = what is held out is named. Few names may miss the ratio (docs/SAMPLING.md).
    split_seed
        Another seed draws another split. It is not `seed`, so that a training with another order has the same
        validation.
    val_experiments
        Names of experiments to hold out, with `split: experiments`.
    val_fovs
        FOVs to hold out, with `split: fovs`: `experiment/row/col/fov`, or `row/col/fov` of all experiments.
    val_values
        Values to hold out, where `split` is a label; `~` names the cells without a value.
    tau_range
        (min, max) hours from anchor to positive, within the range the shards were built for.
    tau_decay_rate
        Decay of P(τ) over the range; 0 draws τ uniformly.
    batch_size
        Samples per step per rank.
    num_workers
        Threads that read; 0 reads in the training thread.
    experiment_aware
        Draw a batch from one experiment.
    condition_balanced
        Give every condition of the experiment the same number of samples, or those of `condition_ratio`.
    leaky
        Fraction of a batch from other experiments.
    temporal_enrichment
        Draw most of a batch near one focal HPI.
    temporal_window_hours
        Half-width of the focal window.
    temporal_global_fraction
        Fraction of a batch from outside the focal window.
    experiment_weights, group_weights
        Share of batches per experiment (or other group: two names of one thing); None = in proportion to its anchors.
        Weights may change with the epoch: `{0: {a: 1, b: 0}, 20: {a: 1, b: 1}}`.
    condition_ratio, stratify_ratio
        Share of each condition (or other stratify value: two names of one thing); None = equal.
    return_negative
        Also read an explicit negative for each anchor, for triplet losses.
    channel_dropout_channels
        Channels that may be dropped in training, counted in stored order; ones the data lack are left out.
    channel_dropout_prob
        Probability of dropping each.
    normalizations
        Modules called as `module(x, norm_meta)`, such as `dynaclr_wds.transforms.NormalizeSampled`, or their
        descriptions: the `class_path` and `init_args` that a config would have.
    augmentations
        Kornia augmentations, or modules that map (B, C, Z, Y, X) to the same; in training only, and with
        `positive: self` in validation.
    hcl_beta
        Hard-negative concentration. The loss owns it; it stands here so that a config shows it with the sampling.
    cache_pool_bytes
        On a disk: bytes of shards to read into the page cache before training, at most; 0 = leave it to the first
        epoch. In object storage, exact mode: bytes of patches that each rank keeps in memory after they were read.
    seed
        Seed of the order and of all draws.
    include_wells
        Wells to use, nothing else: `row/col`, or `experiment/row/col`; or a mapping, experiment → `row/col`, which
        leaves the other experiments as they are. None = all.
    exclude_fovs
        FOVs to leave out: `row/col/fov`, or `experiment/row/col/fov`; or a mapping, experiment → `row/col/fov`.
    window_bytes
        None: exact mode, every patch within reach on a local disk. Else streaming: most bytes of shards that are
        resident at a time, over all ranks; shards are read from front to back. A number, or text such as `"64G"`, or
        `"10%"` of the bytes of the blocks that training draws from; `setup` works it out.
    num_streams
        Streaming only: logical streams, a multiple of the number of ranks; None = 8, or the ranks if they are more.
    relax_lineages
        Streaming only: accept a window that is too small for a batch of distinct lineages; repeats are counted.
    verify_reads
        Check what is read of the shards for the first time in this process against its checksum, blocks in streaming
        and else patches, and every index file when the set is opened. None = index files always, blocks in streaming.
        It costs one more pass over the bytes in the first epoch (docs/BENCHMARKS.md) and nothing later: 1 to 3 % of a
        training of 50 epochs. What comes from object storage is always checked.
    batch_group_by
        Labels that make a group, of which one makes the main part of a batch; where other parameters say "experiment",
        they mean the group; none or None = draw a batch from everything. In streaming, every block of the shards must
        be of one group.
    stratify_by
        Labels to balance in a batch; where other parameters say "condition", they mean a value of these; none or None =
        balance nothing.
    channels_per_sample
        None: a sample holds all channels that are stored. A number k: it holds k of them, and every set of k channels
        of a cell is a sample of its own (a "bag of channels"), so experiments may differ in their channels. The labels
        `channel` and `marker` are then those of the channels drawn, for `batch_group_by`, `stratify_by` and
        `positive_match_columns` too. A list of channels or markers: these, in this order.
    positive
        What the positive of an anchor is. "temporal": a cell of the lineage some τ later. "self": the same patch,
        augmented anew; every cell is an anchor, and `tau_range` plays no part. "columns": another cell that agrees in
        `positive_match_columns`, of another lineage where there is one within reach.
    positive_match_columns
        Labels that a positive by columns shares with its anchor, such as ["perturbation", "marker"].
    positive_channel
        With `channels_per_sample`: "same" gives the positive the channels of its anchor (by columns: channels of the
        same marker); "any" draws them anew.
    tau_direction
        "forward", or "both": a cell near the end of its track, without a positive ahead, takes one as far behind.
    positive_relatives
        What a temporal positive may be: "lineage", any cell of the lineage, cousins too; or "descendants", the cell
        itself or one that descends from it (behind: an ancestor).
    meta_names
        More names in `anchor_meta`, `positive_meta` and `negative_meta`, for callbacks that look for others: name → a
        label or another key that is there. `{perturbation: condition, hours_post_perturbation: hpi}` gives the names of
        the reference implementation.
    predict_experiments
        Names of experiments to embed; None = all. In prediction only.
    predict_tracks
        Names of tracks to embed, `experiment/row/col/fov/track_id`; None = all. In prediction only.
    predict_limit
        Embed the first so many cells only; None = all. In prediction only.
    storage_options
        How shards in object storage are reached: `endpoint`, `region`, `anonymous`, keys, time limits and more
        (docs/OBJECT_STORAGE.md). Keys are better left in the environment; no checkpoint, config or log keeps them.
    cache_dir
        Where the index of shards in object storage is kept on this node; None = the cache folder of the user.
    cache_dir_bytes
        Of shards in object storage: most bytes of shards to keep in `cache_dir` as well, for later epochs and for
        other ranks and jobs of this node, such as `"200G"`; what was used longest ago goes first. 0 = none.
    on_shard_error
        What happens in training when a sample can't be read: its shard is gone, cut short, or not what was written.
        "raise" ends the training; "substitute" puts another sample of its stratum in its place, the same in every
        run, counts it in the ledger and warns once for each shard. A server that does not answer is always an error.
    max_bad_fraction
        With "substitute": share of an epoch's samples that may be replaced; more is an error that names the shards.
    shards_version
        Version of the shards to read, where the set has grown since and keeps it; None = the newest.

    Raises
    ------
    ValueError
        Settings of the split that don't go together. In `setup`: an unknown name, nothing left to train, validate or
        predict on, or a value the shards can't serve.
    """

    def __init__(
        self,
        shards: str,
        experiments_yaml: str | None = None,
        z_range: tuple[int, int] | None = None,
        yx_patch_size: tuple[int, int] | None = None,
        final_yx_patch_size: tuple[int, int] | None = None,
        final_z: int | None = None,
        z_reduction: dict[str, Literal["center", "mip"]] | None = None,
        val_experiments: list[str] | None = None,
        tau_range: tuple[float, float] = (0.5, 2.0),
        tau_decay_rate: float = 2.0,
        batch_size: int = 128,
        num_workers: int = 2,
        experiment_aware: bool = True,
        condition_balanced: bool = True,
        leaky: float = 0.0,
        temporal_enrichment: bool = False,
        temporal_window_hours: float = 2.0,
        temporal_global_fraction: float = 0.3,
        experiment_weights: dict[str, float] | dict[int, dict[str, float]] | None = None,
        condition_ratio: dict[str, float] | None = None,
        return_negative: bool = False,
        channel_dropout_channels: Sequence[int] = DROPPED,
        channel_dropout_prob: float = 0.5,
        normalizations: list[ModuleOrDescription] | None = None,
        augmentations: list[ModuleOrDescription] | None = None,
        hcl_beta: float = 0.5,
        cache_pool_bytes: int = 0,
        seed: int = 0,
        include_wells: list[str] | dict[str, list[str]] | None = None,
        exclude_fovs: list[str] | dict[str, list[str]] | None = None,
        window_bytes: int | str | None = None,
        num_streams: int | None = None,
        relax_lineages: bool = False,
        verify_reads: bool | None = None,
        batch_group_by: Sequence[str] | None = ("experiment",),
        stratify_by: Sequence[str] | None = ("condition",),
        group_weights: dict[str, float] | dict[int, dict[str, float]] | None = None,
        stratify_ratio: dict[str, float] | None = None,
        channels_per_sample: int | list[str] | None = None,
        positive: PositiveKind = "temporal",
        positive_match_columns: Sequence[str] = (),
        positive_channel: PositiveChannel = "same",
        tau_direction: TauDirection = "forward",
        positive_relatives: PositiveRelatives = "lineage",
        split: str = EXPERIMENTS,
        split_ratio: float | None = None,
        split_seed: int = 0,
        val_fovs: list[str] | None = None,
        val_values: list[str] | None = None,
        meta_names: dict[str, str] | None = None,
        predict_experiments: list[str] | None = None,
        predict_tracks: list[str] | None = None,
        predict_limit: int | None = None,
        storage_options: dict[str, Any] | None = None,
        cache_dir: str | None = None,
        cache_dir_bytes: int | str = 0,
        on_shard_error: Literal["raise", "substitute"] = "raise",
        max_bad_fraction: float = 0.01,
        shards_version: int | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["normalizations", "augmentations", "storage_options"], logger=False)
        kept: dict[str, Any] = {"storage_options": kept_options(storage_options)}
        kept |= {"normalizations": normalizations, "augmentations": augmentations}
        keep_arguments(self, kept, logger=False, secret=["storage_options"])
        self.shards = shards
        self.experiments_yaml = experiments_yaml
        self.z_range = z_range
        self.yx_patch_size = yx_patch_size
        self.final_yx_patch_size = final_yx_patch_size
        self.final_z = final_z
        self.z_reduction = z_reduction
        self.val_experiments = list(val_experiments or [])
        self.tau_range = tau_range
        self.tau_decay_rate = tau_decay_rate
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.experiment_aware = experiment_aware
        self.condition_balanced = condition_balanced
        self.leaky = leaky
        self.temporal_enrichment = temporal_enrichment
        self.temporal_window_hours = temporal_window_hours
        self.temporal_global_fraction = temporal_global_fraction
        self.experiment_weights = experiment_weights
        self.condition_ratio = condition_ratio
        self.return_negative = return_negative
        self.channel_dropout_channels = list(channel_dropout_channels)
        self.channel_dropout_prob = channel_dropout_prob
        self.normalizations = make_modules(normalizations, "normalizations")
        self.augmentations = make_modules(augmentations, "augmentations")
        self.hcl_beta = hcl_beta
        self.cache_pool_bytes = cache_pool_bytes
        self.seed = seed
        self.include_wells = include_wells
        self.exclude_fovs = exclude_fovs
        self.window_bytes = window_bytes
        self.num_streams = num_streams
        self.relax_lineages = relax_lineages
        self.verify_reads = verify_reads
        self.batch_group_by = list(batch_group_by or [])
        self.stratify_by = list(stratify_by or [])
        self.group_weights = group_weights
        self.stratify_ratio = stratify_ratio
        self.channels_per_sample = channels_per_sample
        self.positive = positive
        self.positive_match_columns = list(positive_match_columns)
        self.positive_channel = positive_channel
        self.tau_direction = tau_direction
        self.positive_relatives = positive_relatives
        self.split = split
        self.split_ratio = split_ratio
        self.split_seed = split_seed
        self.val_fovs = list(val_fovs or [])
        self.val_values = list(val_values or [])
        self.holding_out = SplitConfig(
            split=split,
            split_ratio=split_ratio,
            split_seed=split_seed,
            val_experiments=tuple(self.val_experiments),
            val_fovs=tuple(self.val_fovs),
            val_values=tuple(self.val_values),
        )
        """What is held out for validation."""
        self.meta_names = dict(meta_names or {})
        self.predict_experiments = predict_experiments
        self.predict_tracks = predict_tracks
        self.predict_limit = predict_limit
        self.storage_options = parse_options(storage_options)
        self.cache_dir = cache_dir
        self.cache_dir_bytes = parse_limit(cache_dir_bytes)
        self.on_shard_error = on_shard_error
        self.max_bad_fraction = max_bad_fraction
        self.shards_version = shards_version
        check_on_shard_error(on_shard_error, max_bad_fraction)
        self.shard_set: ShardSet | None = None
        self.sides: Split | None = None
        """What is for training and what for validation."""
        self.train_dataset: MultiExperimentTripletDataset | None = None
        self.val_dataset: MultiExperimentTripletDataset | None = None
        self.predict_dataset: MultiExperimentTripletDataset | None = None
        self.train_sampler: FlexibleBatchSampler | None = None
        self.transforms: dict[int, BatchTransform] = {}
        """Number of channels → what is done to a batch that has as many."""
        self._state: Mapping[str, Any] | None = None
        self._side_streams = SideStreams()

    def __repr__(self) -> str:
        window = self.window_bytes if self.train_sampler is None else self.train_sampler.window_bytes
        held = f"{window:,} bytes" if isinstance(window, int) else str(window)
        mode = "exact" if window is None else f"streaming in {held}"
        what = repr(self.shards) if self.shard_set is None else repr(self.shard_set)
        held_out = f"{self.holding_out.short} for validation"
        if self.train_sampler is not None:
            mode = f"{count_of(len(self.train_sampler.index.row), 'anchor')} for training, {mode}"
        if self.val_dataset is not None:
            held_out = f"{count_of(len(self.val_dataset), 'anchor')} of {held_out}"
        return f"MultiExperimentDataModule({what}, {mode}, batches of {self.batch_size}, {held_out})"

    def __str__(self) -> str:  # Lightning's own lists loaders in four lines
        return repr(self)

    @property
    def sampling(self) -> SamplingConfig:
        """What is asked of a batch, as the plan takes it."""
        return SamplingConfig(
            batch_size=self.batch_size,
            experiment_aware=self.experiment_aware and bool(self.batch_group_by),
            leaky=self.leaky,
            group_weights=self.group_weights,
            experiment_weights=self.experiment_weights,
            condition_balanced=self.condition_balanced and bool(self.stratify_by),
            stratify_ratio=self.stratify_ratio,
            condition_ratio=self.condition_ratio,
            temporal_enrichment=self.temporal_enrichment,
            temporal_window_hours=self.temporal_window_hours,
            temporal_global_fraction=self.temporal_global_fraction,
            tau_decay_rate=self.tau_decay_rate,
            return_negative=self.return_negative,
            relax_lineages=self.relax_lineages,
            seed=self.seed,
        )

    @property
    def positives(self) -> PositiveRule:
        """What may be a positive, as the plan takes it."""
        return PositiveRule(
            kind=self.positive,
            match_columns=tuple(self.positive_match_columns),
            channel=self.positive_channel,
            tau_direction=self.tau_direction,
            relatives=self.positive_relatives,
        )

    def channel_names(self, experiment: str) -> list[str]:
        """Names of the channels of an experiment's patches, in order; none where each sample has its own."""
        assert self.shard_set is not None
        if self.channels_per_sample is not None:
            return []
        records = {record.name: record for record in self.shard_set.manifest.experiments}
        return list(records[experiment].source_channel)

    def prepare_data(self) -> None:
        """Build the shards if a YAML is given and they are absent or of another config."""
        if self.experiments_yaml is not None:
            build_from_yaml(
                self.experiments_yaml,
                self.shards,
                {
                    "z_range": self.z_range,
                    "yx_patch_size": self.yx_patch_size,
                    "tau_range_hours": self.tau_range,
                },
            )

    def setup(self, stage: str | None = None) -> None:
        """Open the shards and list what each split draws from."""
        self.shard_set = shards = self._open_shards()
        read = self.predict_experiments if stage == "predict" else None
        crop = plan_crop(shards, self.z_range, self.yx_patch_size, read)
        self._check_final_size(shards, crop)
        counts = {e.shape[0] for e in shards.manifest.experiments}
        if self.channels_per_sample is not None:
            several = self.channels_per_sample
            counts = {several if isinstance(several, int) else len(several)}
        self.transforms = {count: self._make_transform(count) for count in counts}
        check_meta_names(self.meta_names, shards, drawn=self.channels_per_sample is not None)
        if stage in (None, "fit", "validate"):
            self.sides = split = shards.plan_split(self.holding_out, self.include_wells, self.exclude_fovs)
            if stage != "validate":
                self._setup_train(shards, crop, split)
            elif split.asked.split_ratio is not None:
                split.check(self.shards)  # a ratio that leaves nothing to train on is no split
            if stage == "validate":
                rank_zero_info(split.describe_val(shards.manifest.fovs))
            self._setup_validation(shards, crop, split, needed=stage == "validate")
            if stage != "validate":  # last, so that nothing is announced that is then refused
                self._say_what_differs(shards, split)
        if stage in (None, "predict"):
            self.predict_dataset = self._dataset(crop, self.list_predicted(shards), self._predicted_choices(shards))

    def _open_shards(self) -> ShardSet:
        """Open the shards; all ranks the version that the first one has found, also where the set grows meanwhile."""

        def opened(version: int | None) -> ShardSet:
            return ShardSet.open(
                self.shards,
                verify=self.verify_reads is not False,
                storage_options=self.storage_options,
                cache_dir=self.cache_dir,
                version=version,
            )

        shards, trainer = opened(self.shards_version), self.trainer
        if trainer is None or trainer.world_size == 1:
            return shards
        common: int = trainer.strategy.broadcast(shards.manifest.set_version)
        return shards if common == shards.manifest.set_version else opened(common)

    def list_predicted(self, shards: ShardSet) -> BatchPlan:
        """List the cells that prediction embeds, each once.

        Raises
        ------
        ValueError
            No cell is left, or an experiment, a well or a FOV that isn't there.
        """
        fovs, chosen = shards.manifest.fovs, self.predict_experiments
        keep = keep_fovs(fovs, self.include_wells, self.exclude_fovs)
        if chosen is not None:
            check_experiments(chosen, shards.experiments, "predict_experiments")
            keep &= keep_experiments(fovs, chosen)
        table = list_observations(
            shards, keep, self.predict_limit, self._predicted_choices(shards), self.predict_tracks
        )
        if not len(table):
            raise ValueError(
                f"Nothing to predict: no cell of {self.shards} is in predict_experiments={chosen}, include_wells="
                f"{self.include_wells} and outside exclude_fovs={self.exclude_fovs}. Choose others."
            )
        return table

    def _setup_train(self, shards: ShardSet, crop: Crop, split: Split) -> None:
        split.check(self.shards)
        config, world, index = self.sampling, self._world(), self._index(shards, split.train)
        check_one_shape(shards, crop, index, groups_meet=not config.experiment_aware or config.leaky > 0)
        self._let_model_check(shards, crop, index)
        with window_as_typed(self.window_bytes):
            self.train_sampler = FlexibleBatchSampler(
                index,
                config,
                rank=world.rank,
                world_size=world.size,
                window_bytes=parse_window(self.window_bytes, index.stored_bytes),
                num_streams=self.num_streams,
            )
        streaming = self.train_sampler.window_bytes is not None
        self.train_dataset = self._dataset(crop, None, index.choices, streaming=streaming)
        if self.on_shard_error == "substitute":
            samples = self.train_sampler.global_batches // world.size * self.batch_size
            most = self.max_bad_fraction * samples
            self.train_dataset.substitution = Substitution(shards, self.train_sampler, most)
        if self.cache_pool_bytes and shards.remote is None:
            warmed = self.train_dataset.warm(index, self.cache_pool_bytes)
            rank_zero_info(f"Read {warmed / 2**20:,.0f} MiB of shards into the page cache.")

    def _setup_validation(self, shards: ShardSet, crop: Crop, split: Split, *, needed: bool) -> None:
        if not split.asked.holds_out:
            empty = "split_ratio is 1" if self.split_ratio else f"{split.asked.naming} is empty"
            if needed:
                raise ValueError(
                    f"{empty}: nothing is held out to validate on. Name experiments of {self.shards}, which holds "
                    f"{list(shards.experiments)}: --data.val_experiments '[{shards.experiments[-1]}]'; or hold out "
                    "fields of view: --data.split fovs --data.split_ratio 0.8."
                )
            rank_zero_info(f"{empty}: nothing is held out, so there is no validation.")
            return
        split.check(self.shards, train=False)
        held_out = self._index(shards, split.val)
        self._let_model_check(shards, crop, held_out)
        if not len(held_out.row):
            raise ValueError(
                f"{split.asked} of {self.shards} holds no anchor with a positive for tau_range="
                f"{tuple(self.tau_range)}, include_wells={self.include_wells}, exclude_fovs={self.exclude_fovs}: "
                "nothing to validate on. Hold out others, or leave fewer cells out."
            )
        self.val_dataset = self._dataset(crop, plan_validation(held_out, self.sampling), held_out.choices)

    def _index(self, shards: ShardSet, side: Side) -> PlanIndex:
        return shards.plan_index(
            shards.experiments,
            self.tau_range,
            self.include_wells,
            self.exclude_fovs,
            batch_group_by=self.batch_group_by,
            stratify_by=self.stratify_by,
            positives=self.positives,
            channels_per_sample=self.channels_per_sample,
            side=side,
        )

    def _predicted_choices(self, shards: ShardSet) -> ChannelChoices | None:
        return shards.list_choices(self.channels_per_sample, self.predict_experiments or shards.experiments)

    def _let_model_check(self, shards: ShardSet, crop: Crop, index: PlanIndex) -> None:
        """Let the model refuse patches that it can't take, before the long part of the setup."""
        check = getattr(getattr(self.trainer, "lightning_module", None), "check_data", None)
        if check is not None:
            used = {stratum.experiment for stratum in index.strata}
            shapes = [crop.shape(e.shape) for e in shards.manifest.experiments if e.name in used]
            shown = {shown_shape(shape, self, self.channels_per_sample)[:2] for shape in shapes}
            check(sorted(shown), self.return_negative)

    def _say_what_differs(self, shards: ShardSet, split: Split) -> None:
        """Say once, when training starts, what a user of the reference implementation would not expect."""
        for note in split.notes:
            rank_zero_info(note)
        for warning in split.warnings:
            rank_zero_warn(warning)
        channels = {e.name: e.source_channel for e in shards.manifest.experiments}
        for module in self.normalizations:
            if isinstance(module, StatisticsNormalization):
                found = module.describe_zero_divisors(shards.statistics, shards.statistics_experiments, channels)
                if found:
                    rank_zero_warn(found)
        widest = max(self.transforms)
        asked, known = self.channel_dropout_channels, list(self.transforms[widest].channel_dropout.channels)
        if len(known) < len(asked) and (known or tuple(asked) != DROPPED):
            have = f"patches have {count_of(widest, 'channel')}, counted from 0"
            rank_zero_info(f"channel_dropout_channels={asked}, but {have}: {known or 'none'} may be dropped.")
        if sentence := describe_channel_dropout(known, self.channel_dropout_prob):
            rank_zero_info(sentence)

    def train_dataloader(self) -> ThreadDataLoader:
        """Return batches as the sampler composes them."""
        sampler, dataset = self.train_sampler, self.train_dataset
        if sampler is None or dataset is None:
            raise RuntimeError("Call setup('fit') before train_dataloader().")
        if self._state is not None:
            assert self.shard_set is not None, "opened by setup, as the sampler was made"
            check_version(self._state["shards"], self.shard_set.manifest, self.shard_set.root)
            sampler.load_state_dict(self._state)
            self._state = None
        if self.trainer is not None:
            sampler.set_epoch(self.trainer.current_epoch)
        loader = ThreadDataLoader(dataset, batch_sampler=sampler, num_workers=self.num_workers)
        if self.trainer is not None:
            self._tell_lengths(sampler, loader)
        return loader

    def _tell_lengths(self, sampler: FlexibleBatchSampler, loader: ThreadDataLoader) -> None:
        """After a restart with another world size, this epoch has another length than the next ones: say so."""
        steps = sampler.global_batches // sampler.world_size
        if len(loader) != steps:
            self.trainer.reload_dataloaders_every_n_epochs = 1  # type: ignore[union-attr]
        if not len(sampler):
            # saved after the last batch but before the epoch's end: Lightning compares what is done with the next epoch
            done = self.trainer.fit_loop.epoch_loop.batch_progress.current  # type: ignore[union-attr]
            done.completed = max(done.completed, steps)

    def val_dataloader(self) -> ThreadDataLoader | list[ThreadDataLoader]:
        """Return every anchor of the validation experiments once, in an order fixed by the seed."""
        return [] if self.val_dataset is None else self._sequential(self.val_dataset)

    def predict_dataloader(self) -> ThreadDataLoader:
        """Return every observation once, with its identity as `index`."""
        if self.predict_dataset is None:
            raise RuntimeError("Call setup('predict') before predict_dataloader().")
        return self._sequential(self.predict_dataset)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move a batch to the device, beside what that computes; patches that are anchor and positive move once."""
        same = isinstance(batch, dict) and "positive" in batch and batch["positive"] is batch["anchor"]
        own = {key: value for key, value in batch.items() if key != "positive"} if same else batch
        move = super().transfer_batch_to_device
        moved = self._side_streams.run(lambda: move(own, device, dataloader_idx), device)
        return moved | {"positive": moved["anchor"]} if same else moved

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Normalise, augment (in training), crop, drop channels (in training); a bare Tensor passes through.

        With `positive: self`, validation augments too, with the same draws in every epoch.
        """
        del dataloader_idx
        if isinstance(batch, Tensor) or not self.transforms:
            return batch
        transform, trainer = self.transforms[batch["anchor"].shape[1]], self.trainer
        if self.positive == "self" and trainer is not None and (trainer.validating or trainer.sanity_checking):
            with fixed_draws(self.seed, int(batch["anchor_meta"].observations[0])):
                return transform(batch, training=False, augment=True)
        return transform(batch, training=trainer is not None and trainer.training)

    def state_dict(self) -> dict[str, Any]:
        """Where training stands in the epoch, for the checkpoint."""
        if self.train_sampler is None or self.shard_set is None:
            return {}
        return {**self.train_sampler.state_dict(), "shards": describe_version(self.shard_set.manifest)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume from `state_dict()` when the training loader is made next."""
        self._state = state_dict or None

    def _world(self) -> World:
        trainer = self.trainer
        world = detect_world(trainer)
        if trainer is not None and world.size > 1 and trainer._accelerator_connector.use_distributed_sampler:
            raise ValueError(
                "Trainer(use_distributed_sampler=True) would deal the batches out a second time; the sampler here "
                f"knows its rank and the world size of {world.size}. Pass Trainer(use_distributed_sampler=False)."
            )
        return world

    def _dataset(
        self, crop: Crop, table: BatchPlan | None, choices: ChannelChoices | None, *, streaming: bool = False
    ) -> MultiExperimentTripletDataset:
        assert self.shard_set is not None
        return MultiExperimentTripletDataset(
            self.shard_set,
            crop,
            table=table,
            pinned=torch.cuda.is_available(),
            streaming=streaming,
            meta_names=self.meta_names,
            verify_reads=streaming if self.verify_reads is None else self.verify_reads,
            store=open_store(
                self.shard_set,
                ask=not streaming,
                num_workers=self.num_workers,
                pool_bytes=0 if streaming else self.cache_pool_bytes,
                disk_bytes=self.cache_dir_bytes,
            ),
            channel_flags=self._channel_flags(self.shard_set),
            choices=choices,
        )

    def _channel_flags(self, shards: ShardSet) -> dict[str, Bool[np.ndarray, "e c"]]:
        """Say of each stored channel what the transforms ask for."""
        experiments, flags = shards.manifest.experiments, {}
        if self.z_reduction is not None:
            flags[MIP] = plan_z_reduction(self.z_reduction, experiments)
        if any(isinstance(module, DictTransform) for module in (*self.normalizations, *self.augmentations)):
            flags[LABELFREE] = table_labelfree(experiments)
        return flags

    def _sequential(self, dataset: MultiExperimentTripletDataset) -> ThreadDataLoader:
        world = self._world()
        return ThreadDataLoader(
            dataset.share(world.rank, world.size, self.batch_size),
            batch_size=self.batch_size,
            shuffle=False,
            num_workers=self.num_workers,
        )

    def _check_final_size(self, shards: ShardSet, crop: Crop) -> None:
        final = self.final_yx_patch_size
        shapes = [crop.shape(e.shape)[1:] for e in shards.manifest.experiments]
        read = min(y for _, y, _ in shapes), min(x for _, _, x in shapes)
        planes = min(z for z, _, _ in shapes)
        if self.final_z is not None and self.final_z > planes:
            raise ValueError(
                f"final_z={self.final_z} is larger than the {planes} slices that are read. "
                "Ask for less, or read more with z_range."
            )
        if final is not None and (final[0] > read[0] or final[1] > read[1]):
            raise ValueError(
                f"final_yx_patch_size={tuple(final)} is larger than the patches that are read, {read}. "
                "Ask for less, or read more with yx_patch_size."
            )

    def _make_transform(self, channels: int) -> BatchTransform:
        """Make the transform of batches with so many channels; those that they lack are not dropped."""
        known = [c for c in self.channel_dropout_channels if c < channels]
        dropout = ChannelDropout(known, self.channel_dropout_prob)
        final_size = (self.final_z, *(self.final_yx_patch_size or (None, None)))
        return BatchTransform(
            self.normalizations, self.augmentations, final_size, dropout, reduce_z=self.z_reduction is not None
        )
