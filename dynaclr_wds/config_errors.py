"""Turns what jsonargparse says of a mistake into one sentence: the key or option, what is allowed, what is nearest.

jsonargparse's texts are parsed, as it gives nothing else. A text of an unknown form is passed on, cut to three lines.
"""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Collection, Sequence
from importlib import import_module
from itertools import pairwise
from typing import NamedTuple

from dynaclr_wds.program import called_as, explain_option

_LINES = 3
_KINDS_OF_VALUE = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
    "NoneType": "null",
    "tuple": "a list",
    "list": "a list",
    "dict": "a mapping",
}


class Asked(NamedTuple):
    """What the user gave."""

    command: str
    """`fit`, `validate` or `predict`."""
    argv: Sequence[str]
    keys: Collection[str]
    """All keys that the command knows."""

    @property
    def configs(self) -> list[str]:
        """Files that were given with `-c`."""
        words = list(self.argv)
        after = [value for word, value in pairwise([*words, ""]) if word in ("-c", "--config")]
        return after + [word.partition("=")[2] for word in words if word.startswith(("-c=", "--config="))]

    def where(self, key: str) -> str:
        """The config that a key stands in, as the start of a sentence; empty if it is an option."""
        given = [word for word in self.argv if word.lstrip("-").split("=")[0].startswith(key)]
        return "" if given or not self.configs else f"{', '.join(self.configs)}: "


def explain_mistake(message: str, asked: Asked) -> str:
    """Say in one to three lines what is wrong with a config or an option."""
    for pattern, explain in _EXPLAIN:
        if found := re.search(pattern, message, re.DOTALL):
            return explain(found, asked)
    return "\n".join(line.strip() for line in message.strip().splitlines()[:_LINES])


def explain_absent_device(option: str, accelerator: object, message: str) -> str | None:
    """Say what to do where Lightning finds no device of the kind that was asked for; None if it says something else."""
    if not re.search(r"No supported gpu backend found|can not run on your system", message):
        return None
    return (
        f"{option} {accelerator}: torch finds no such device on this machine. Give {option} auto, or cpu; where there "
        "is a GPU, install its driver and a torch that was built for it."
    )


def find_nearest(key: str, keys: Collection[str]) -> str | None:
    """Return the key that was probably meant: `batch_size` and `data.batchsize` are `data.batch_size`."""
    last = {known.rpartition(".")[2]: known for known in keys}
    if key in last:
        return last[key]
    if near := difflib.get_close_matches(key, keys, n=1, cutoff=0.75):
        return near[0]
    near = difflib.get_close_matches(key.rpartition(".")[2], last, n=1, cutoff=0.75)
    return last[near[0]] if near else None


def _explain_option(found: re.Match[str], asked: Asked) -> str:
    given = found[1]
    near = find_nearest(given.lstrip("-"), asked.keys) if given.startswith("-") else None
    if near:
        return f"there is no option {given}. Did you mean --{near}?"
    return explain_option(given, (), f"{called_as(asked.command)} {_help_flag(asked)}")


def _explain_key(found: re.Match[str], asked: Asked) -> str:
    key = f"{found['group']}.{found['key']}" if found["group"] else found["key"]
    near = find_nearest(key, asked.keys)
    return f"{asked.where(key)}there is no key {key}. " + (f"Did you mean {near}?" if near else _see_all(asked))


def _see_all(asked: Asked) -> str:
    return f"`{called_as(asked.command)} {_help_flag(asked)}` lists all there are."


def _help_flag(asked: Asked) -> str:
    return "--help" if asked.command == "simulate" else "--help_all"


def _explain_missing(found: re.Match[str], asked: Asked) -> str:
    keys = [key.removeprefix(f"{asked.command}.") for key in found[1].split(", ")]
    if asked.command == "simulate":
        return f"{', '.join(keys)} must be given: `{called_as('simulate')} FOLDER`."
    return (
        f"{', '.join(keys)} must be given. Give --{keys[0]}, or a config: -c configs/{asked.command}.yaml "
        f"(`{called_as('init')}` writes one)."
    )


def _explain_no_config(found: re.Match[str], asked: Asked) -> str:
    given = next((config for config in asked.configs if found[1].endswith(config)), found[1])
    return f"there is no config {given}. `{called_as('init')} experiments.yaml` writes configs/ for your experiments."


def _explain_yaml(found: re.Match[str], asked: Asked) -> str:
    text = " ".join(found[1].replace('in "<unicode string>", ', "in ").split())
    return f"{', '.join(asked.configs) or 'the config'}: can't be read as YAML ({text}). Correct it."


def _explain_value(found: re.Match[str], asked: Asked) -> str:
    key, body = found[1], found[2]
    where = asked.where(key)
    if key == "model.init_from":
        return (
            f"{where}{key} has keys: path, map, ignore, strict. Give --{key}.path FILE, the checkpoint to begin with."
        )
    if "class_path 'torch.nn.Module'" in body:
        return f"{where}{key} has no class yet. Give its class_path first: --{key}=dynaclr_wds.…"
    if option := re.search(r"class_path '([^']+)':\s+(?:.*?)Option '([^']+)' is not accepted", body, re.DOTALL):
        return where + _explain_parameter(key, option[1], option[2])
    if missing := re.search(r"class_path '([^']+)':\s+module '([^']+)' has no attribute", body):
        return where + _explain_class(key, missing[1])
    if text := re.search(r"Expected a dot import path string: (\S+)", body):
        return where + _explain_class(key, text[1])
    if problem := re.search(r"class_path '([^']+)':\s+([^\n]+)", body):
        return f"{where}{key}: {problem[1]}: {problem[2].strip()}."
    kinds = dict.fromkeys(re.findall(r"Expected an? (.+?)(?:\. Got value: .*)?$", body, re.MULTILINE))
    value = re.search(r"(?:Given value|Got value): (.*)", body, re.DOTALL)
    if kinds and value:
        return where + _explain_kind(key, value[1].strip(), list(kinds))
    return f"{where}{key}: " + "\n".join(line.strip() for line in body.strip().splitlines()[:_LINES])


def _explain_parameter(key: str, class_path: str, name: str) -> str:
    """Say which parameters a class has."""
    module, _, kind = class_path.rpartition(".")
    known = [
        p for p in inspect.signature(getattr(import_module(module), kind)).parameters if p not in ("args", "kwargs")
    ]
    near = difflib.get_close_matches(name, known, n=1)
    advice = f"Did you mean {near[0]}?" if near else f"It has {', '.join(known)}."
    return f"{key}: {kind} has no parameter {name}. {advice}"


def _explain_class(key: str, class_path: str) -> str:
    """Say that there is no such class, and which name of its module is near."""
    module, _, kind = class_path.rpartition(".")
    try:
        names = [name for name in dir(import_module(module)) if not name.startswith("_")] if module else []
    except ImportError:
        names = []
    near = difflib.get_close_matches(kind, names, n=1)
    advice = (
        f"Did you mean {module}.{near[0]}?"
        if near
        else "Give module.Class, as in dynaclr_wds.train.encoder.MonaiEncoder."
    )
    return f"{key}={class_path!r}: there is no such class. {advice}"


def _explain_kind(key: str, value: str, kinds: Sequence[str]) -> str:
    words, choices = [], []
    for kind in kinds:
        if named := re.fullmatch(r"<class '(?:\w+\.)*(\w+)'>", kind):
            words.append(_KINDS_OF_VALUE.get(named[1], named[1]))
        elif literal := re.fullmatch(r"typing\.Literal\[(.*)\]", kind):
            choices += [choice.strip(" '") for choice in literal[1].split(",")]
        else:
            words.append(kind)
    choices = list(dict.fromkeys(choices))
    near = difflib.get_close_matches(value, choices, n=1)
    allowed = " or ".join([*([f"one of {', '.join(choices)}"] if choices else []), *dict.fromkeys(words)])
    advice = f"Did you mean {near[0]}?" if near else "Correct it."
    if "list" in " ".join(kinds).lower() and re.fullmatch(r"[\w./-]+", value):
        advice = f"Write '[{value}]'."
    return f"{key}={value:.100} must be {allowed}. {advice}"


_EXPLAIN: tuple[tuple[str, Callable[[re.Match[str], Asked], str]], ...] = (
    (r"unrecognized arguments: ([^\s=]+)", _explain_option),
    (r"(?:Subcommand '\w+'|Group '(?P<group>[^']+)') does not accept option '(?P<key>[^']+)'", _explain_key),
    (r"the following arguments are required: (.+)", _explain_missing),
    (r"Parser key \"config\":\s+File does not exist: '(.+)'", _explain_no_config),
    (r"Problems parsing config: (.+)", _explain_yaml),
    (r"Parser key \"([^\"]+)\":(.+)", _explain_value),
)
