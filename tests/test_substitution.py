"""Samples that can't be read: another of the stratum takes the place, the same in every run, or it is an error."""

from __future__ import annotations

import re
import shutil
import warnings
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import numpy as np
import obstore
import pytest
from lightning.pytorch import Trainer

from dynaclr_wds.errors import ChecksumError, ConfigError, FormatError
from dynaclr_wds.shardset import ShardSet
from dynaclr_wds.train.epoch_ledger import _add_up_substituted
from dynaclr_wds.world import World
from tests.remote import EXACT, STREAMING, assert_same, make_data, quick, upload
from tests.servers.faults import Rule, Schedule

MODES = pytest.mark.parametrize("mode", [EXACT, STREAMING], ids=["exact", "streaming"])
SUBSTITUTE = {"on_shard_error": "substitute", "max_bad_fraction": 1.0}


@pytest.fixture
def damaged(short_clips: Path, tmp_path: Path) -> Path:
    """A copy of `short_clips`, to be damaged."""
    out = tmp_path / "damaged"
    shutil.copytree(short_clips, out)
    return out


def change_byte(shards: Path, block: int = 0) -> str:
    """Change a byte in the middle of a block; return the path of its shard."""
    a, manifest = (found := ShardSet.open(shards)).arrays, found.manifest
    path = manifest.shards[int(a["block_shard"][block])].path
    row = int(a["clip_first"][np.searchsorted(a["clip_block"], block)])
    content = bytearray((shards / path).read_bytes())
    content[int(a["patch_offset"][row]) + 5] ^= 1
    (shards / path).chmod(0o644)
    (shards / path).write_bytes(content)
    return path


def read_quietly(data: Any) -> list[dict[str, Any]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return list(data.train_dataloader())


def strata(batch: dict[str, Any]) -> list[tuple[str, str]]:
    return [(meta["experiment"], meta["condition"]) for meta in batch["anchor_meta"]]


@MODES
def test_a_damaged_block_is_an_error_unless_substitution_is_asked_for(damaged, mode):
    change_byte(damaged)
    with pytest.raises(ChecksumError):
        list(make_data(damaged, verify_reads=True, **mode).train_dataloader())


@MODES
@pytest.mark.parametrize("workers", [0, 2])
def test_stand_ins_keep_the_laws_of_a_batch_and_are_the_same_at_every_replay(
    damaged, short_clips, monkeypatch, mode, workers
):
    path = change_byte(damaged)
    options = {"verify_reads": True, **mode}
    whole = list(make_data(short_clips, **options).train_dataloader())
    data = make_data(damaged, num_workers=workers, **SUBSTITUTE, **options)
    told: list[str] = []
    with monkeypatch.context() as patch:  # reading threads warn, and the check of shapes in tests hides some of theirs
        patch.setattr(warnings, "warn", lambda text, **_: told.append(str(text)))
        found = list(data.train_dataloader())
    (said,) = [text for text in told if "are replaced" in text]
    assert re.search(rf"samples of .*{path} are replaced by others", said)
    assert len(found) == len(whole)
    replaced = 0
    for one, other in zip(found, whole, strict=True):
        assert one["anchor"].shape == other["anchor"].shape
        assert strata(one) == strata(other)
        before, after = (batch["anchor_meta"].observations.tolist() for batch in (other, one))
        replaced += sum(a != b for a, b in zip(after, before, strict=True))
        lineages = [[meta["lineage_id"] for meta in batch["anchor_meta"]] for batch in (one, other)]
        assert len(set(lineages[0])) >= len(set(lineages[1]))
    assert replaced > 0
    assert data.train_dataset.substitution.replaced_by_name == {path: replaced}
    assert_same(read_quietly(make_data(damaged, **SUBSTITUTE, **options)), found)


@MODES
def test_resume_in_the_middle_of_a_damaged_epoch_equals_the_uninterrupted_run(damaged, mode):
    change_byte(damaged)
    options = {"verify_reads": True, **SUBSTITUTE, **mode}
    whole = read_quietly(make_data(damaged, **options))
    for step in (1, len(whole) // 2):
        first = make_data(damaged, **options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            loader = first.train_dataloader()
            batches = iter(loader)
            for _ in range(step):
                next(batches)
            batches.close()
        state = first.state_dict()
        second = make_data(damaged, **options)
        second.load_state_dict(state)
        assert_same(read_quietly(second), whole[step:])


@MODES
def test_two_ranks_yield_equally_many_full_batches_and_the_batches_of_one(damaged, monkeypatch, mode):
    change_byte(damaged)
    options = {"verify_reads": True, **SUBSTITUTE, **mode, **({"num_streams": 2} if mode else {})}
    one = read_quietly(make_data(damaged, **options))
    parts = []
    for rank in range(2):
        monkeypatch.setattr("dynaclr_wds.datamodule.detect_world", lambda _, rank=rank: World(rank=rank, size=2))
        parts.append(read_quietly(make_data(damaged, **options)))
    assert len(parts[0]) == len(parts[1]) == len(one) // 2
    for rank, part in enumerate(parts):
        assert_same(part, one[rank : 2 * len(part) : 2])


@MODES
def test_too_many_are_an_error_that_names_the_shards(damaged, mode):
    path = change_byte(damaged)
    data = make_data(damaged, verify_reads=True, on_shard_error="substitute", max_bad_fraction=0.0, **mode)
    with pytest.raises(FormatError, match=rf"\d+ samples? of this epoch could not .* They are of .*{path}\. Restore"):
        read_quietly(data)


def test_a_torn_file_is_replaced_too(damaged):
    path = ShardSet.open(damaged).manifest.shards[0].path
    data = make_data(damaged, **SUBSTITUTE)
    content = (damaged / path).read_bytes()
    (damaged / path).unlink()
    (damaged / path).write_bytes(content[: len(content) // 2])
    found = read_quietly(data)
    assert {len(batch["anchor"]) for batch in found} == {4}
    assert data.train_dataset.substitution.replaced_by_name.keys() == {path}


@MODES
def test_what_is_gone_from_a_bucket_is_replaced_and_a_dead_server_is_an_error(
    bucket, short_clips, proxy_before, tmp_path, mode
):
    proxy, url = proxy_before(bucket.endpoint), upload(bucket, short_clips)
    options = {"cache_dir": str(tmp_path), **SUBSTITUTE, **mode}
    data, dead = (
        make_data(url, storage_options=quick(proxy.before(bucket), retry_timeout=seconds), **options)
        for seconds in (60.0, 1.0)
    )
    path = data.shard_set.manifest.shards[0].path
    if mode:  # of a stratum that is resident in one shard only, there is nobody to stand in
        begin = int(data.shard_set.arrays["block_begin"][0])
        proxy.use(Schedule(0, (Rule(kinds=("404",), target=path, headers={"Range": f"bytes={begin}-"}),)))
    else:
        obstore.delete(bucket.store(), f"sets/first/{path}")
    found = read_quietly(data)
    assert {len(batch["anchor"]) for batch in found} == {4}
    assert data.train_dataset.substitution.replaced_by_name.keys() == {path}
    proxy.close()
    with pytest.raises(OSError, match="the request failed"):
        read_quietly(dead)


KINDS = {
    "temporal": {},
    "focal": {"temporal_enrichment": True, "temporal_window_hours": 1.0},
    "negative": {"return_negative": True},
    "self": {"positive": "self"},
    "columns": {"positive": "columns", "positive_match_columns": ["condition"]},
    "channels": {"channels_per_sample": 1},
}


@MODES
@pytest.mark.parametrize("kind", KINDS)
def test_stand_ins_are_of_the_stratum_and_within_reach_with_new_lineages_first(short_clips, mode, kind):
    sampler = make_data(short_clips, **mode, **KINDS[kind]).train_sampler
    index = sampler.index
    for number in (0, len(sampler) // 2):
        plan = sampler.plan(number)
        anchor = index.find(plan.anchor, plan.anchor_choice)
        taken = index.lineage(anchor).tolist()
        for place in range(len(plan)):
            found = sampler.stand_ins(plan, place, taken)
            again = sampler.stand_ins(plan, place, taken)
            assert found.anchor.tolist() == again.anchor.tolist()
            assert found.positive.row.tolist() == again.positive.row.tolist()
            drawn = index.find(found.anchor, found.anchor_choice)
            assert set(index.stratum(drawn).tolist()) == {int(index.stratum(anchor[place : place + 1])[0])}
            assert (found.negative is None) == (kind != "negative")
            met = np.isin(found.lineage, taken)
            if kind != "focal":
                assert met.tolist() == sorted(met.tolist())
            assert not met[0]
            if mode:
                here = sampler.blocks(0)
                resident = set(here.block[(here.admit <= number) & (here.retire >= number)].tolist())
                rows = [found.anchor, found.positive.row, *([] if found.negative is None else [found.negative])]
                clips = index.columns.patch_clip[np.concatenate(rows)]
                assert set(index.columns.clip_block[clips].tolist()) <= resident


def test_the_ledger_counts_what_was_replaced_over_all_ranks(damaged):
    path = change_byte(damaged)
    data = make_data(damaged, verify_reads=True, **SUBSTITUTE)
    read_quietly(data)
    replaced = data.train_dataset.substitution.replaced_by_name[path]
    trainer = create_autospec(Trainer, instance=True)
    trainer.strategy.root_device = "cpu"
    trainer.strategy.reduce = lambda counts, reduce_op: {"sum": 2 * counts}[reduce_op]  # as of two equal ranks
    total = _add_up_substituted(trainer, data)
    assert total == {path: 2 * replaced}
    report = data.train_sampler.report(2, substituted=total)
    assert report.to_dict()["substituted"] == total
    assert f"replaced, because {path} can't be read: {2 * replaced} samples" in str(report)


def test_options_are_checked():
    with pytest.raises(ConfigError, match="on_shard_error='skip' must be raise or substitute"):
        make_data("nowhere", on_shard_error="skip")
    with pytest.raises(ConfigError, match=r"max_bad_fraction=2\.0 must be a share, from 0 to 1"):
        make_data("nowhere", max_bad_fraction=2.0)
