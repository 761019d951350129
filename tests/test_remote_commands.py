"""Commands on shards in object storage: train, embed, plan, and read without an index. Secrets stay out of files."""

from __future__ import annotations

import json
import logging
import re
import sys
import tempfile
from pathlib import Path

import obstore
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

import dynaclr_wds.train.prediction
from dynaclr_wds import __main__ as command
from dynaclr_wds import triplet_pipeline
from dynaclr_wds.errors import ConfigError, FormatError
from dynaclr_wds.shardset import ShardSet
from dynaclr_wds.storage.speed import Rate, choose
from dynaclr_wds.train.settle import Request
from tests.remote import forget_credentials, quick, upload
from tests.servers.bucket import Bucket
from tests.servers.faults import Schedule
from tests.servers.proxy import Link
from tests.servers.seaweedfs import ROLES
from tests.test_predict import CONFIG

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
    pytest.mark.filterwarnings("ignore:GPU available but not used"),
]
SECRETS = [text for key, secret, _ in ROLES.values() for text in (key, secret)]


@pytest.fixture(autouse=True)
def _alone(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["dynaclr_wds"])
    monkeypatch.chdir(tmp_path)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


@pytest.fixture
def url(bucket: Bucket, shards: Path) -> str:
    """`shards` in a bucket of SeaweedFS."""
    return upload(bucket, shards)


def words(bucket: Bucket) -> list[str]:
    return [f"{key}={value}" for key, value in bucket.storage_options().items()]


@pytest.mark.slow
def test_train_and_embed_from_a_url_and_keep_no_secret(url, bucket, shards, tmp_path, monkeypatch, capsys):
    options = quick(bucket)
    data = {**CONFIG["data"], "shards": url, "storage_options": options, "cache_dir": str(tmp_path / "cache")}
    trainer = {key: value for key, value in CONFIG["trainer"].items() if key != "logger"}
    trainer["default_root_dir"] = str(tmp_path / "logs")
    Path("fit.yaml").write_text(yaml.safe_dump({**CONFIG, "trainer": trainer, "data": data}))
    assert command.main(["fit", "-c", "fit.yaml"]) == 0
    written = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "fit.yaml"]
    names = {path.name for path in written}
    assert {"config.yaml", "a.ckpt"} <= names
    for path in written:
        content = path.read_bytes()
        assert not any(secret.encode() in content for secret in SECRETS), path
    (config,) = [yaml.safe_load(path.read_text()) for path in written if path.name == "config.yaml"]
    kept = {key: value for key, value in options.items() if key not in ("access_key_id", "secret_access_key")}
    assert config["data"]["storage_options"] == kept
    hparams = torch.load("saved/a.ckpt", weights_only=False)["datamodule_hyper_parameters"]
    assert (hparams["shards"], hparams["storage_options"]) == (url, kept)

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", options["access_key_id"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", options["secret_access_key"])
    predict = ["predict", "--ckpt", "saved/a.ckpt", "--limit", "40", "--accelerator", "cpu"]
    assert command.main([*predict, "--out", "far.parquet"]) == 0  # where and how is in the checkpoint, keys are not
    assert command.main([*predict, "--out", "near.parquet", "--shards", str(shards)]) == 0
    far, near = pq.read_table("far.parquet"), pq.read_table("near.parquet")
    assert far.num_rows == 40
    assert far.column("name") == near.column("name")
    assert far.column("features").to_pylist() == near.column("features").to_pylist()
    origin = json.loads(far.schema.metadata[b"dynaclr_wds"])
    assert origin["shards"] == url
    check_tables_in_a_bucket(predict, bucket, near, monkeypatch, capsys)
    forget_credentials(monkeypatch, tmp_path)
    capsys.readouterr()
    assert command.main([*predict, "--out", "none.parquet"]) == 2
    assert "there are no credentials for s3://" in capsys.readouterr().err


def check_tables_in_a_bucket(predict, bucket, near, monkeypatch, capsys):
    """Embed into a bucket: whole or not there, never over a table unless told, and never lost."""
    monkeypatch.setattr(tempfile, "tempdir", str(Path.cwd()))
    out, store = f"{bucket.url}/tables/far.parquet", bucket.store()
    capsys.readouterr()
    assert command.main([*predict, "--out", out]) == 0
    assert f"Wrote 40 rows to {out}." in capsys.readouterr().out
    (entry,) = obstore.list(store, "tables").collect()
    table = pq.read_table(pa.BufferReader(bytes(obstore.get(store, entry["path"]).bytes())))
    assert entry["path"] == "tables/far.parquet"
    for name in ("name", "t", "features", "projections"):
        assert table.column(name).to_pylist() == near.column(name).to_pylist()
    assert command.main([*predict, "--out", out]) == 2
    assert f"error: {out}: is there already. Give another name, or --overwrite" in capsys.readouterr().err
    assert not list(Path.cwd().glob("dynaclr-embeddings-*"))

    def come_there_meanwhile(*_):
        obstore.put(store, "tables/second.parquet", b"theirs")
        return trainer_run(*_)

    trainer_run = dynaclr_wds.train.prediction.run
    monkeypatch.setattr(dynaclr_wds.train.prediction, "run", come_there_meanwhile)
    assert command.main([*predict, "--out", f"{bucket.url}/tables/second.parquet"]) == 2
    said = capsys.readouterr().err
    assert "tables/second.parquet: is there already" in said
    (kept,) = re.findall(r"The table is whole on this machine: (.*)\. Copy it from there", said)
    assert pq.read_table(kept).num_rows == 40
    assert bytes(obstore.get(store, "tables/second.parquet").bytes()) == b"theirs"
    assert command.main([*predict, "--out", f"{bucket.url}/tables/second.parquet", "--overwrite"]) == 0
    assert obstore.head(store, "tables/second.parquet")["size"] == entry["size"]
    with pytest.raises(ConfigError, match=r"out='https://example\.org/a\.parquet': https:// can be read"):
        dynaclr_wds.train.prediction.predict(Request(ckpt="saved/a.ckpt", out="https://example.org/a.parquet"))


def test_shuffle_plans_a_url_as_a_folder(url, bucket, shards, tmp_path, capsys):
    def plan(*argv: str) -> dict[str, object]:
        assert command.main(["shuffle", *argv, "--batch_size", "8", "--json"]) == 0
        said = json.loads(capsys.readouterr().out)
        for mode in said["modes"].values():
            mode.pop("ms_per_batch")
        return said

    assert plan(url, "--cache_dir", str(tmp_path), "--storage_options", *words(bucket)) == plan(str(shards))
    options = {"storage_options": bucket.storage_options(), "cache_dir": str(tmp_path), "shards": url}
    Path("fit.yaml").write_text(yaml.safe_dump({"data": options}))
    assert plan("-c", "fit.yaml") == plan(str(shards))


def test_the_plain_pipeline_reads_urls_as_it_reads_files(url, bucket, shards):
    paths = [record.path for record in ShardSet.open(shards).manifest.shards if record.path.startswith("e0/")]
    near = triplet_pipeline([str(shards / path) for path in paths], batch_size=4, seed=3)
    options = quick(bucket, request_bytes=1 << 16)
    far = triplet_pipeline([f"{url}/{path}" for path in paths], batch_size=4, seed=3, storage_options=options)
    count = 0
    for one, other in zip(far, near, strict=True):
        assert torch.equal(one["anchor"], other["anchor"])
        assert torch.equal(one["positive"], other["positive"])
        assert repr(one["anchor_meta"]) == repr(other["anchor_meta"])
        count += 1
    assert count > 10


def test_a_stream_whose_object_is_replaced_is_an_error(url, bucket, shards):
    path = next(record.path for record in ShardSet.open(shards).manifest.shards if record.bytes > 1 << 19)
    options = quick(bucket, request_bytes=1 << 13)
    batches = iter(triplet_pipeline(f"{url}/{path}", batch_size=1, shuffle=0, storage_options=options))
    next(batches)
    obstore.put(bucket.store(), f"sets/first/{path}", bytes(len((shards / path).read_bytes())))
    with pytest.raises(FormatError, match=rf"{re.escape(url)}/{path}, bytes .*: was replaced since"):
        list(batches)


@pytest.mark.parametrize(
    "text", ["pipe:curl s3://x/y.tar", "PIPE:cat a.tar", "ftp://x/y.tar", "s3://key:secret@b/y.tar"]
)
def test_the_plain_pipeline_refuses_other_schemes(text):
    with pytest.raises(
        ValueError, match=r"runs a shell command|URLs of scheme 'ftp'|holds a user, a password"
    ) as caught:
        triplet_pipeline([text], batch_size=1)
    assert "key:secret" not in str(caught.value)


def test_bench_storage_measures_the_link_and_says_what_to_set(url, bucket, proxy_before, capsys):
    proxy = proxy_before(bucket.endpoint, Schedule(), Link(delay_seconds=0.03))
    options = words(proxy.before(bucket))
    assert command.main(["bench-storage", url, "--seconds", "0.3", "--json", "--storage_options", *options]) == 0
    said = json.loads(capsys.readouterr().out)
    rates = {(rate["request_bytes"], rate["in_flight"]): rate["requests"] for rate in said["rates"]}
    one, sixteen = rates[said["patch_bytes"], 1], rates[said["patch_bytes"], 16]
    assert one < 1 / 0.03
    assert sixteen > 3 * one
    assert said["advice"]["exact"]["requests_in_flight"] >= 16
    assert said["advice"]["exact"]["num_workers"] == said["advice"]["exact"]["requests_in_flight"] / 16


def test_bench_storage_measures_no_disk(shards, capsys):
    assert command.main(["bench-storage", str(shards)]) == 2
    assert "is a path, and there is no link to measure" in capsys.readouterr().err


def test_advice_is_the_fewest_requests_that_give_nearly_the_best():
    rates = [
        Rate(request_bytes=100, in_flight=n, requests=r) for n, r in ((1, 10.0), (4, 39.0), (16, 91.0), (64, 100.0))
    ]
    assert choose(rates, 100).in_flight == 16
    assert choose(rates[:2], 100).in_flight == 4
