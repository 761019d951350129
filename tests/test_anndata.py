"""Laws of `predict --anndata` and `--tracks`: AnnData opens it, it says what the table says, it is whole or absent."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from dynaclr_wds.contract import FovRecord
from dynaclr_wds.errors import ConfigError, StorageError
from dynaclr_wds.evaluate.reading import read_table
from dynaclr_wds.track_names import keep_tracks, list_tracks
from dynaclr_wds.train import anndata_layout, anndata_writer
from dynaclr_wds.train.anndata_writer import AnnDataWriter
from tests.test_predict import ckpt as ckpt
from tests.test_predict import predict

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
    pytest.mark.filterwarnings("ignore:GPU available but not used"),
    pytest.mark.filterwarnings("ignore::FutureWarning:anndata"),
]


REST = {"well": "A/1", "frames": 1, "height": 8, "width": 8}


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.argv", ["dynaclr_wds"])
    monkeypatch.chdir(tmp_path)


def rows(start: int, count: int) -> list[dict[str, object]]:
    """Identities as batches have them; the label has no value now and then."""
    return [
        {
            "name": f"e0/A/1/0/{n}/{n % 7}", "experiment": "e0", "condition": "mock" if n % 3 else "infected",
            "kind": None if n % 5 == 0 else f"k{n % 4}", "fov_name": "A/1/0", "global_track_id": f"e0/A/1/0/{n}",
            "lineage_id": f"e0/A/1/0/{n // 2}", "track_id": n, "t": n % 7, "hpi": n / 2,
        }
        for n in range(start, start + count)
    ]  # fmt: skip


def write(path: Path, counts: Sequence[int], **settings: object) -> np.ndarray:
    """Write batches of so many rows; return their features."""
    writer, trainer, module = AnnDataWriter(str(path), **settings), Trainer(logger=False), LightningModule()
    x = torch.arange(sum(counts) * 3, dtype=torch.float32).reshape(-1, 3)
    writer.on_predict_start(trainer, module)
    start = 0
    for count in counts:
        part = x[start : start + count]
        outputs = {"index": rows(start, count), "features": part, "projections": -part[:, :2]}
        writer.on_predict_batch_end(trainer, module, outputs, None, 0)
        start += count
    writer.on_predict_end(trainer, module)
    return x.numpy()


def test_blocks_that_were_added_one_by_one_are_one_anndata(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(anndata_layout, "ROWS", 2)
    monkeypatch.setattr(anndata_layout, "BLOCK", 4)
    monkeypatch.setattr(anndata_writer, "BLOCK", 4)
    made = {
        "package": "dynaclr-wds 1",
        "epoch": 3,
        "z_range": [0, 2],
        "normalizations": [{"class_path": "x"}],
    }
    x = write(tmp_path / "a.zarr", [3, 3, 1, 6], metadata=json.dumps(made))
    data = anndata.read_zarr(tmp_path / "a.zarr")
    assert data.X.dtype == np.float32
    assert data.X.tolist() == x.tolist()
    assert data.obsm["X_projections"].tolist() == (-x[:, :2]).tolist()
    expected = rows(0, 13)
    assert data.obs.index.tolist() == [row["name"] for row in expected]
    assert data.obs.index.is_unique
    for name in ("experiment", "condition", "fov_name", "global_track_id", "lineage_id", "track_id", "t", "hpi"):
        assert data.obs[name].tolist() == [row[name] for row in expected]
    kinds = [None if pd.isna(kind) else kind for kind in data.obs["kind"]]
    assert kinds == [row["kind"] for row in expected]
    assert data.obs["perturbation"].tolist() == data.obs["condition"].tolist()
    assert data.obs["hours_post_perturbation"].tolist() == data.obs["hpi"].tolist()
    assert set(data.obs["marker"]) == {"all"}
    assert data.uns["dynaclr_wds"] == {
        "package": "dynaclr-wds 1", "epoch": 3, "z_range": "[0, 2]", "normalizations": '[{"class_path": "x"}]',
    }  # fmt: skip
    assert data.var_names.tolist() == ["feature_0", "feature_1", "feature_2"]


def test_no_chunk_is_written_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(anndata_layout, "ROWS", 2)
    monkeypatch.setattr(anndata_layout, "BLOCK", 4)
    monkeypatch.setattr(anndata_writer, "BLOCK", 4)
    sizes: list[int] = []
    append = anndata_layout.AnnDataFile.append
    monkeypatch.setattr(
        anndata_layout.AnnDataFile, "append", lambda self, table: (sizes.append(len(table)), append(self, table))[1]
    )
    write(tmp_path / "a.zarr", [3, 3, 1, 6])
    assert sizes == [4, 8, 1]


def test_it_is_whole_or_absent_and_replaced_only_when_asked(tmp_path: Path):
    path = tmp_path / "a.zarr"
    writer, trainer, module = AnnDataWriter(str(path)), Trainer(logger=False), LightningModule()
    writer.on_predict_start(trainer, module)
    outputs = {"index": rows(0, 2), "features": torch.ones(1, 2), "projections": torch.ones(1, 2)}
    with pytest.raises(ValueError, match="2 identities for 1 embeddings"):
        writer.on_predict_batch_end(trainer, module, outputs, None, 0)
    writer.on_exception(trainer, module, RuntimeError())
    assert list(tmp_path.iterdir()) == []
    write(path, [5])
    with pytest.raises(StorageError, match=r"a.zarr: is there already. Give another name, or overwrite=True"):
        write(path, [4])
    assert anndata.read_zarr(path).n_obs == 5
    write(path, [4], overwrite=True)
    assert anndata.read_zarr(path).n_obs == 4
    assert [one.name for one in tmp_path.iterdir()] == ["a.zarr"]


@pytest.mark.slow
def test_the_command_writes_the_same_to_both_and_chosen_tracks_only(
    ckpt: Path, shards: Path, capsys: pytest.CaptureFixture[str]
):
    assert predict("--ckpt", ckpt, "--out", "t.parquet", "--anndata", "t.zarr", "--limit", 40) == 0
    assert "Wrote 40 rows to t.parquet, t.zarr." in capsys.readouterr().out
    table, data = pq.read_table("t.parquet"), anndata.read_zarr("t.zarr")
    assert data.obs.index.tolist() == table["name"].to_pylist()
    assert np.array_equal(data.X, np.stack(table["features"].to_numpy()))
    assert np.array_equal(data.obsm["X_projections"], np.stack(table["projections"].to_numpy()))
    names = set(table.column_names) - {"name", "features", "projections"}
    assert set(data.obs.columns) == names | {"perturbation", "hours_post_perturbation", "marker"}
    assert data.uns["dynaclr_wds"]["shards"] == str(shards)
    of_table, of_data = (read_table(Path(f"t{end}"), "x", "features", 999) for end in (".parquet", ".zarr"))
    for name in ("name", "experiment", "fov", "track", "lineage", "t", "hpi"):
        assert np.array_equal(getattr(of_table.cells, name), getattr(of_data.cells, name)), name
    assert of_table.cells.labels.keys() == of_data.cells.labels.keys()
    two = sorted(set(table["global_track_id"].to_pylist()))[:2]
    Path("two.csv").write_text("global_track_id,note\n" + "".join(f"{name},x\n" for name in two))
    assert predict("--ckpt", ckpt, "--anndata", "two.zarr", "--tracks", "two.csv") == 0
    assert set(anndata.read_zarr("two.zarr").obs["global_track_id"]) == set(two)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "predict needs --out FILE.parquet or --anndata FOLDER.zarr, what to write. Give one, or both."),
        (["--anndata", "x.h5ad"], "--anndata x.h5ad: must end in .zarr, which is what is written. Give such a name."),
        (["--anndata", "s3://b/x.zarr"], "--anndata='s3://b/x.zarr' is a URL, and URLs are not supported here yet"),
        (["--anndata", "file.zarr"], "file.zarr: is a file. Give the name of a folder."),
    ],
)
def test_what_cannot_be_written_is_refused_before_anything_is_loaded(
    given: list[str], said: str, capsys: pytest.CaptureFixture[str]
):
    Path("file.zarr").touch()
    assert predict("--ckpt", "none.ckpt", *given) == 2
    assert capsys.readouterr().err.startswith(f"error: {said}")


def test_tracks_are_named_with_or_without_their_experiment(tmp_path: Path):
    fovs = [FovRecord(experiment=e, fov_name=f, **REST) for e, f in (("a", "A/1/0"), ("b", "A/1/0"), ("b", "A/2/0"))]
    fov, track = np.array([0, 0, 1, 1, 2, 2]), np.array([1, 2, 1, 3, 1, 1])
    assert keep_tracks(["b/A/1/0/3", "A/2/0/1"], fovs, fov, track).tolist() == [0, 0, 0, 1, 1, 1]
    with pytest.raises(ConfigError, match=r"--tracks A/1/0/1: a and b have a FOV of that name. Write the experiment"):
        keep_tracks(["A/1/0/1"], fovs, fov, track)
    with pytest.raises(
        ConfigError, match=r"the shards have no c/A/1/0/1, a/A/1/0/9 \(2 names of 3\). A track .* such as a/A/1/0/1."
    ):
        keep_tracks(["c/A/1/0/1", "a/A/1/0/9", "a/A/1/0/2"], fovs, fov, track)
    (tmp_path / "t.csv").write_text("experiment,fov_name,track_id,t\nb,A/1/0,3,0\nb,A/1/0,3,1\n")
    assert list_tracks(["a/A/1/0/1", str(tmp_path / "t.csv")]) == ["a/A/1/0/1", "b/A/1/0/3"]
    (tmp_path / "u.csv").write_text("id\n3\n")
    with pytest.raises(ConfigError, match=r"u.csv: has the columns id. Needed are global_track_id, or fov_name and"):
        list_tracks([str(tmp_path / "u.csv")])
    with pytest.raises(ConfigError, match=r"--tracks no.csv: can't be read as a table"):
        list_tracks(["no.csv"])
