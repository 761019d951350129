"""One program runs every command: names, help, errors of a few lines, and what it refuses."""

from __future__ import annotations

import ast
import runpy
import signal
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import pytest
import yaml

import dynaclr_wds
import etl
from dynaclr_wds import __main__ as program
from dynaclr_wds.build import build_from_yaml
from dynaclr_wds.errors import BuildError, ConfigError
from dynaclr_wds.local_paths import refuse_url
from dynaclr_wds.program import ISSUES, called_as, explain_error, run_command, suggest
from etl import build_shards, verify
from etl import init as init_command
from etl.inspect import __main__ as inspect_command
from etl.simulate import __main__ as simulate
from tests.remote import forget_credentials
from tests.test_imports import loaded_by

ROOT = Path(__file__).parent.parent
HEAVY = {"numpy", "torch", "lightning", "pyarrow", "duckdb", "zarr", "rich", "yaml", "jsonargparse", "pydantic"}


@pytest.fixture(autouse=True)
def _called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/dynaclr-wds"])
    monkeypatch.delenv("DYNACLR_DEBUG", raising=False)


def test_every_subcommand_is_the_command_of_its_module() -> None:
    mains = {
        "init": init_command.main,
        "inspect": inspect_command.main,
        "build": build_shards.main,
        "simulate": simulate.main,
        "verify": verify.main,
    }
    for name, main in mains.items():
        assert import_module(program.COMMANDS[name][0]).main is main
    offline, online = (
        ["init", "inspect", "build", "simulate", "verify"],
        ["preview", "fit", "validate", "predict", "evaluate", "export"],
    )
    assert {*offline, *online, "shuffle", "bench-storage"} == {*program.COMMANDS, *program.LIGHTNING}


def test_help_lists_every_command_in_the_order_of_use(capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["--help"]) == 0
    out = capsys.readouterr().out
    listed = [line.split()[0] for line in out.splitlines() if line.startswith("  ") and not line.startswith("  d")]
    online = ["preview", "fit", "validate", "predict", "evaluate", "export", "shuffle", "verify", "bench-storage"]
    assert listed == ["init", "inspect", "build", "simulate", *online]
    assert "  dynaclr-wds fit -c configs/fit.yaml\n" in out


@pytest.mark.parametrize(
    "command",
    [
        [],
        *(
            [name]
            for name in (
                "build",
                "init",
                "inspect",
                "verify",
                "shuffle",
                "preview",
                "evaluate",
                "export",
                "bench-storage",
                "fit",
                "validate",
            )
        ),
    ],
    ids=str,
)
def test_help_imports_nothing_heavy(command: list[str]) -> None:
    call = f"contextlib.suppress(SystemExit): main({[*command, '--help']!r})"
    silent = "sys.stdout = io.StringIO()"
    loaded = loaded_by(
        "import contextlib, io, sys; from dynaclr_wds.__main__ import main",
        silent,
        f"with {call}",
        "sys.stdout = sys.__stdout__",
    )
    assert loaded & HEAVY == set()


@pytest.mark.parametrize(
    ("argv0", "name"),
    [
        ("/venv/bin/dynaclr-wds", "dynaclr-wds build"),
        ("/x/site-packages/dynaclr_wds/__main__.py", "python -m dynaclr_wds build"),
        ("/x/etl/build_shards.py", "python -m etl.build_shards"),
        ("/x/bin/pytest", "dynaclr-wds build"),
    ],
)
def test_usage_shows_the_name_that_was_called(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], argv0: str, name: str
) -> None:
    monkeypatch.setattr(sys, "argv", [argv0])
    with pytest.raises(SystemExit) as stopped:
        build_shards.main(["--help"])
    out = capsys.readouterr().out
    assert stopped.value.code == 0
    assert out.startswith(f"usage: {name} [-h]")
    assert f"\n  {name} experiments.yaml\n" in out


def test_a_package_is_called_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/x/etl/simulate/__main__.py"])
    assert called_as("simulate", "etl.simulate") == "python -m etl.simulate"
    assert called_as("verify", "etl.verify") == "dynaclr-wds verify"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["biuld"], "error: dynaclr-wds has no command 'biuld'. Did you mean build?\n"),
        (
            ["zzz"],
            "error: dynaclr-wds has no command 'zzz'. There are bench-storage, build, evaluate, export, fit, init, "
            "inspect, predict, preview, shuffle, simulate, validate, verify.\n",
        ),
    ],
)
def test_an_unknown_command_is_answered_with_the_nearest(
    capsys: pytest.CaptureFixture[str], given: list[str], said: str
) -> None:
    assert program.main(given) == 2
    assert capsys.readouterr() == ("", said)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["simulate", "x", "--experiment", "3"], "there is no option --experiment. Did you mean --experiments?\n"),
        (["simulate", "x", "--zzz", "3"], "no option --zzz. `dynaclr-wds simulate --help` lists all there are.\n"),
        (["build", "x", "--yx_patch", "3", "3"], "there is no option --yx_patch. Did you mean --yx_patch_size?"),
        (["init", "--rec", "x"], "there is no option --rec. Did you mean --recipe?"),
        (["predict", "--ckpt", "x", "--out", "y", "--overw"], "there is no option --overw. Did you mean --overwrite?"),
        (["shuffle", "x", "--batch", "3"], "there is no option --batch. Did you mean --batch_size?"),
        (["verify", "x", "--work", "3"], "there is no option --work. Did you mean --workers?"),
    ],
)
def test_abbreviations_of_options_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], given: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        status = program.main(given)
    except SystemExit as ended:
        status = ended.code
    assert status == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_every_parser_of_the_benchmarks_refuses_abbreviations() -> None:
    """Those of the package are `CommandParser`, or refuse them in the test above."""
    calls = [
        (path.name, {word.arg for word in node.keywords})
        for path in sorted((ROOT / "benchmarks").glob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("ArgumentParser")
    ]
    assert len(calls) >= 7
    assert [name for name, words in calls if "allow_abbrev" not in words] == []


def test_version_has_one_source(capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["--version"]) == 0
    assert capsys.readouterr().out == f"dynaclr-wds {dynaclr_wds.__version__}\n"
    assert etl.__version__ == dynaclr_wds.__version__ == "0.1.0"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["dynamic"] == ["version"]
    assert project["project"]["urls"]["Issues"] == ISSUES
    assert f"\nversion: {dynaclr_wds.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_windows_is_refused_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(ImportError, match=r"runs on Linux and macOS, not on Windows: .* Use it in WSL2"):
        runpy.run_path(str(Path(dynaclr_wds.__file__)))
    done = subprocess.run(
        [sys.executable, "-c", "import sys; sys.platform = 'win32'; import etl"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("ImportError: dynaclr-wds runs on Linux and macOS, not on Windows")


def raising(error: Exception):
    """Return a command that raises an error the way a library does: not by a `raise` of ours."""

    def run(argv: Sequence[str]) -> int:
        assert "--debug" not in argv
        raise error

    return run


def test_an_error_of_ours_is_its_message_and_its_notes(capsys: pytest.CaptureFixture[str]) -> None:
    error = ConfigError("a.yaml: x=3 must be 4. Correct it.")
    error.add_note("This is the second experiment.")
    assert run_command(raising(error), ["--quiet"]) == 2
    assert capsys.readouterr().err == "error: a.yaml: x=3 must be 4. Correct it.\nThis is the second experiment.\n"


def test_a_wrapped_error_of_ours_is_explained_by_itself(capsys: pytest.CaptureFixture[str]) -> None:
    wrapped = TypeError("Does not validate")
    wrapped.__cause__ = ConfigError("x=3 must be 4.")
    assert run_command(raising(wrapped), []) == 2
    assert capsys.readouterr().err == "error: x=3 must be 4.\n"


def test_a_value_error_that_our_code_raises_is_ours() -> None:
    with pytest.raises(ValueError, match="must be two finite numbers") as raised:
        import_module("dynaclr_wds.tau").tau_range_frames((0.0, float("nan")), 30.0)
    assert explain_error(raised.value) == ["A τ range of 0.0 to nan hours must be two finite numbers. Give the hours."]


def test_a_file_that_is_not_there_needs_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(lambda argv: len(Path(argv[0]).read_text()), ["nowhere"]) == 2
    assert capsys.readouterr().err == (
        "error: [Errno 2] No such file or directory: 'nowhere'. --debug shows what wanted it.\n"
    )


@pytest.mark.parametrize("argv", [["--debug", "x"], ["x", "--debug"], ["x"]], ids=str)
def test_debug_shows_the_traceback_and_then_the_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], argv: list[str]
) -> None:
    if "--debug" not in argv:
        monkeypatch.setenv("DYNACLR_DEBUG", "1")
    assert run_command(raising(BuildError("The disk is full.")), argv) == 2
    err = capsys.readouterr().err
    assert err.startswith("Traceback (most recent call last):\n")
    assert err.endswith("dynaclr_wds.errors.BuildError: The disk is full.\nerror: The disk is full.\n")


def test_debug_before_the_command_reaches_it(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert program.main(["--debug", "verify", str(tmp_path)]) == 2
    assert "Traceback" in capsys.readouterr().err
    assert program.main(["verify", str(tmp_path)]) == 2
    assert (
        capsys.readouterr().err
        == f"error: {tmp_path}/manifest.json: there is no manifest, so no shard set. Build it, or name its folder.\n"
    )


@pytest.mark.parametrize("error", [ValueError("of a library"), KeyError("x"), ZeroDivisionError()], ids=repr)
def test_any_other_error_keeps_its_traceback_and_says_where_to_report(error: Exception) -> None:
    with pytest.raises(type(error)) as raised:
        run_command(raising(error), [])
    assert raised.value is error
    (note,) = error.__notes__
    assert note == f"This looks like a fault of dynaclr-wds. Please report it with the lines above: {ISSUES}"


def test_ctrl_c_ends_with_130(capsys: pytest.CaptureFixture[str]) -> None:
    def stop(_: Sequence[str]) -> int:
        raise KeyboardInterrupt

    assert run_command(stop, []) == 130
    assert capsys.readouterr().err == "stopped.\n"


def test_a_name_far_from_all_suggests_nothing() -> None:
    assert suggest("fot", ["fit", "build"]) == " Did you mean fit?"
    assert suggest("zebra", ["fit", "build"]) == ""


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (
            ["build", "e.yaml", "--yx_pach_size", "3"],
            "there is no option --yx_pach_size. Did you mean --yx_patch_size?",
        ),
        (["build"], "the following arguments are required: experiments_yaml."),
        (["build", "absent.yaml"], "absent.yaml: no such file. Give the path of an experiments.yaml."),
        (["verify", "x", "--workers", "two"], "argument --workers: invalid int value: 'two'."),
        (["verify", "x", "--quik"], "there is no option --quik. Did you mean --quick?"),
        (["simulate", "o", "--framez", "3"], "there is no option --framez. Did you mean --frames?"),
        (["simulate", "o", "--frames", "many"], "frames=many must be a whole number. Correct it."),
        (["simulate", "o", "--frames", "0"], "frames=0 must be >= 1. Give a larger value."),
        (["shuffle", "x", "--lekay", "3"], "there is no option --lekay. Did you mean --leaky?"),
        (["init", "x", "--overwrit", "--ovr"], "there is no option --overwrit. Did you mean --overwrite?"),
    ],
    ids=str,
)
def test_mistakes_in_options_are_one_line_and_status_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, argv: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        status = program.main(argv)
    except SystemExit as stopped:  # argparse ends by itself
        status = stopped.code
    err = capsys.readouterr().err
    assert status == 2
    assert len(err.splitlines()) == 1
    assert err.startswith(f"error: {said}")
    assert list(tmp_path.iterdir()) == []


URLS = ("s3://bucket/x", "gs://bucket/x", "az://box/x", "https://host/x", "file:///x")


@pytest.mark.parametrize("url", URLS)
def test_a_url_is_named_as_it_was_given(url: str) -> None:
    with pytest.raises(ConfigError) as raised:
        refuse_url(url, "shards")
    assert str(raised.value) == (
        f"shards={url!r} is a URL, and URLs are not supported here yet: it must be a path on a local or mounted disk. "
        "Copy the files to a disk, or mount the bucket."
    )


@pytest.mark.parametrize("path", ["shards", "/data/a:b", "./s3", "a b/c", "C1/x", "~/x"])
def test_a_path_is_no_url(path: str) -> None:
    refuse_url(path, "shards")
    refuse_url(Path(path), "shards")


@pytest.mark.parametrize(
    "argv",
    [
        ["simulate", "s3://bucket/x"],
        ["init", "e.yaml", "--out", "s3://bucket/x"],
    ],
    ids=str,
)
def test_commands_on_local_disks_refuse_urls(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, argv: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        status = program.main(argv)
    except SystemExit as stopped:
        status = stopped.code
    assert status == 2
    assert "='s3://bucket/x' is a URL, and URLs are not supported here yet" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_python_refuses_urls_where_only_a_path_will_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="experiments_yaml='gs://b/x' is a URL"):
        build_from_yaml("gs://b/x", "shards", {})
    with pytest.raises(ConfigError, match="shards='gs://b/x' is a URL"):
        build_from_yaml(str(tmp_path / "e.yaml"), "gs://b/x", {})


def test_without_keys_what_lies_in_a_bucket_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    forget_credentials(monkeypatch, tmp_path)
    monkeypatch.chdir(tmp_path)
    for argv in (["build", "s3://b/e.yaml"], ["init", "s3://b/e.yaml"]):
        assert program.main(argv) == 2
        assert capsys.readouterr().err.startswith("error: s3://b: there are no credentials for s3://. Set AWS_ACCESS")
    assert program.main(["init", "s3://b/plate.zarr"]) == 2
    assert "init fills in an experiments.yaml from plates on a disk only" in capsys.readouterr().err


@pytest.mark.slow
def test_sigterm_ends_a_build_with_a_line_and_status_143(tmp_path):
    script = """
import os, signal, sys
from etl import build_shards
from etl.run import opening
opening.open_plates = lambda config: os.kill(os.getpid(), signal.SIGTERM)
sys.exit(build_shards.main(sys.argv[1:]))
"""
    entry = {
        **dict.fromkeys(("name", "data_path", "tracks_path"), "a"),
        **{"channel_names": ["P"], "source_channel": ["P"], "condition_wells": {"mock": ["A/1"]}},
    }
    (tmp_path / "e.yaml").write_text(yaml.safe_dump({"experiments": [entry]}))
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "e.yaml"), "--out", str(tmp_path / "out")],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (143, "stopped. Give the same command again to go on.\n")


def test_ctrl_c_that_a_library_wraps_within_an_import_is_no_fault(capsys):
    def run(_: Sequence[str]) -> int:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as interrupt:
            raise RuntimeError("Error calling __set_name__ on 'cached_property'") from interrupt

    assert run_command(run, []) == 130
    assert capsys.readouterr().err == "stopped.\n"


@pytest.mark.parametrize(("command", "undone"), [("fit", "before anything was done"), ("validate", "its metrics")])
def test_a_library_that_fails_after_a_signal_within_its_import_is_no_fault(monkeypatch, capsys, command, undone):
    def run_lightning(_: Sequence[str]) -> None:
        with pytest.raises(SystemExit):  # as a library does that catches everything while it imports
            signal.raise_signal(signal.SIGTERM)
        raise RecursionError("maximum recursion depth exceeded")

    monkeypatch.setattr("dynaclr_wds.commands.lightning.run_lightning", run_lightning)
    assert program.main([command]) == 143
    assert undone in capsys.readouterr().err


def test_a_query_that_ctrl_c_interrupts_is_no_fault(capsys):
    def run(_: Sequence[str]) -> int:
        raise RuntimeError("Query interrupted")

    assert run_command(run, [], when_stopped="stopped. Go on.") == 130
    assert capsys.readouterr().err == "stopped. Go on.\n"
