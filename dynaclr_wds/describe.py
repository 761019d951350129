"""Objects to plain data and back: a class's name and its arguments, as configs and checkpoints hold them.

A description is `{"class_path": "package.module.Class", "init_args": {...}}`, which is how LightningCLI writes an
object in a config. A checkpoint holds descriptions and no pickled objects, so `load_from_checkpoint` and `predict` can
make the network again. An object that was made in Python can be described when its class keeps its arguments
(`Described`) or takes none. A checkpoint may come from a stranger, so only modules and transforms are made of
descriptions, whatever they name: no class of Python's own library, such as one that starts programs.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from jsonargparse import ArgumentError, ArgumentParser
from lightning.pytorch.core.mixins.hparams_mixin import HyperparametersMixin
from torch import nn

from dynaclr_wds.errors import ConfigError

if TYPE_CHECKING:
    ModuleOrDescription = nn.Module | Mapping[str, Any]
else:  # the command line reads annotations, makes modules of descriptions itself, and must not take other mappings
    ModuleOrDescription = nn.Module
"""A module, or its description."""

_UNDESCRIBED = "undescribed"

_T = TypeVar("_T")


class NotDescribedError(Exception):
    """Raised for an object that can't be described; the text is the name of its class."""


class Described:
    """Keeps the arguments that an object is made with, so that it can be described; a base beside `nn.Module`.

    The arguments must be plain data, or objects that can be described themselves. A subclass needs nothing more.
    """

    def __new__(cls: type[_T], *args: Any, **kwargs: Any) -> _T:
        """Note the arguments; `__init__` takes them next."""
        self: _T = super().__new__(cls)  # type: ignore[misc]
        try:
            note = {_UNDESCRIBED: _class_path(cls)} if _is_hidden(cls) else _describe_call(cls, args, kwargs)
        except NotDescribedError as error:
            note = {_UNDESCRIBED: str(error)}
        except TypeError:  # not its arguments: `__init__` says so, and `copy` and `pickle` bring the note with them
            note = {_UNDESCRIBED: _class_path(cls)}
        self.__dict__["_description"] = note
        return self


def describe(value: object) -> Any:
    """Return a value as plain data: what JSON has, with objects as descriptions.

    Raises
    ------
    NotDescribedError
        An object that isn't `Described`, and whose class takes arguments or can't be imported by its name.
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): describe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [describe(item) for item in value]
    if isinstance(value, Described):
        note: dict[str, Any] = value.__dict__["_description"]
        if _UNDESCRIBED in note:
            raise NotDescribedError(note[_UNDESCRIBED])
        return note
    kind = type(value)
    plain = kind.__init__ is nn.Module.__init__ or not inspect.signature(kind).parameters
    if isinstance(value, nn.Module) and plain and not _is_hidden(kind):
        return {"class_path": _class_path(kind), "init_args": {}}
    raise NotDescribedError(_class_path(kind))


def keep_arguments(
    module: HyperparametersMixin, objects: Mapping[str, object], *, logger: bool = True, secret: Sequence[str] = ()
) -> None:
    """Make `module.hparams` plain data, with descriptions of objects; call it after `save_hyperparameters`.

    Parameters
    ----------
    module
        Its `hparams` hold all arguments but the objects.
    objects
        Arguments that are objects, or descriptions of such. What can't be described is marked; `list_undescribed`
        lists it, and `make_module` refuses it.
    logger
        As for `save_hyperparameters`.
    secret
        Arguments that must not be kept as they were given.
    """
    if "_instantiator" in module.hparams:  # made by the command line, which knows what each object is made of
        module.save_hyperparameters(ignore=["_instantiator", *secret], logger=logger)
        objects = {name: value for name, value in objects.items() if module.hparams.get(name) is None}
    for name, value in {**module.hparams, **objects}.items():
        try:
            module.hparams[name] = describe(value)
        except NotDescribedError as error:
            module.hparams[name] = {_UNDESCRIBED: str(error)}


def settle_arguments(description: Any, made: object) -> Any:
    """Return a description that also says what an object found out while it was made.

    An object that has `settled_arguments` is described with these in place of what it was given, and so is any that it
    was given and keeps under the argument's name. A network that was read from a folder says its config so, and can be
    made again where the folder is not.

    Parameters
    ----------
    description
        Of the object; anything else is returned as it is.
    made
        The object.
    """
    if not isinstance(description, Mapping) or "class_path" not in description:
        return description
    given = dict(description.get("init_args") or {})
    inner = {name: settle_arguments(value, getattr(made, name, None)) for name, value in given.items()}
    return {**description, "init_args": inner | describe(getattr(made, "settled_arguments", {}))}


def list_undescribed(arguments: Mapping[str, Any]) -> dict[str, str]:
    """List the arguments that can't be made again: name → class."""
    return {n: v[_UNDESCRIBED] for n, v in arguments.items() if isinstance(v, Mapping) and _UNDESCRIBED in v}


def make_module(value: ModuleOrDescription, name: str) -> nn.Module:
    """Make the module that a description is of; a module is returned as it is.

    Parameters
    ----------
    value
        A module or a description.
    name
        Argument that it is given for, for the error.

    Raises
    ------
    ConfigError
        The class can't be imported, doesn't take these arguments, or was marked as one that can't be described.
    """
    if isinstance(value, nn.Module):
        return value
    if _UNDESCRIBED in value:
        raise ConfigError(
            f"{name}: the checkpoint can't say how to make {value[_UNDESCRIBED]}, because the object was made in "
            "Python and didn't keep its arguments. Make it as in training and give it: "
            f"load_from_checkpoint(path, {name}=…)."
        )
    _check_classes(value, value, name)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(nn.Module, "object", fail_untyped=False)
    made: nn.Module = _instantiate(parser, dict(value), value, name)
    return made


def make_object(value: Mapping[str, Any], name: str) -> Any:
    """Make the object that a description is of: a module, or a transform of another library, which can be called.

    Raises
    ------
    ConfigError
        The class can't be imported, is no such class, or doesn't take these arguments.
    """
    _check_classes(value, value, name)
    parser = ArgumentParser(exit_on_error=False)
    module, _, kind = str(value.get("class_path")).rpartition(".")
    try:
        parser.add_class_arguments(getattr(import_module(module), kind), "object", fail_untyped=False)
    except (ValueError, TypeError) as error:
        raise _cannot_make(value, name, error) from error
    return _instantiate(parser, dict(value.get("init_args") or {}), value, name)


def _check_classes(value: object, whole: Mapping[str, Any], name: str) -> None:
    """Check every class that a description names, however deep, before anything is made of it."""
    if isinstance(value, Mapping):
        if "class_path" in value:
            _check_class(value["class_path"], whole, name)
        for item in value.values():
            _check_classes(item, whole, name)
    elif isinstance(value, list | tuple):
        for item in value:
            _check_classes(item, whole, name)


def _check_class(path: object, whole: Mapping[str, Any], name: str) -> None:
    module, _, kind = str(path).rpartition(".")
    if not module or module.partition(".")[0] in sys.stdlib_module_names:  # not even imported: that may do something
        raise _cannot_make(whole, name, TypeError(f"{path!r:.100} is no module or transform of a library"))
    try:
        found = getattr(import_module(module), kind)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise _cannot_make(whole, name, error) from error
    bases = found.__mro__ if isinstance(found, type) else ()
    if nn.Module not in bases and not any("__call__" in vars(base) for base in bases):
        raise _cannot_make(whole, name, TypeError(f"{path!r:.100} is neither a torch.nn.Module nor a transform"))


def _instantiate(parser: ArgumentParser, given: dict[str, Any], value: Mapping[str, Any], name: str) -> Any:
    try:
        return parser.instantiate_classes(parser.parse_object({"object": given})).object
    except (ArgumentError, ImportError, AttributeError, TypeError, ValueError, KeyError) as error:
        raise _cannot_make(value, name, error) from error


def _cannot_make(value: Mapping[str, Any], name: str, error: Exception) -> ConfigError:
    return ConfigError(
        f"{name}: {value.get('class_path')!r} can't be made of {value.get('init_args')!r:.300} "
        f"({' '.join(str(error).split()):.400}). The class must be importable, as it was in training, and take "
        "these arguments."
    )


def make_modules(values: Sequence[ModuleOrDescription] | Mapping[str, Any] | None, name: str) -> list[nn.Module]:
    """Make the modules of a list; None is an empty one."""
    if isinstance(values, Mapping):
        return [make_module(values, name)]
    return [make_module(value, name) for value in values or ()]


def _describe_call(kind: type, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    signature = inspect.signature(kind.__init__)  # type: ignore[misc]
    bound = signature.bind(None, *args, **kwargs)
    bound.apply_defaults()
    given: dict[str, Any] = {}
    for place, (name, value) in enumerate(bound.arguments.items()):
        parameter = signature.parameters[name].kind
        if place == 0:  # self
            continue
        if parameter is inspect.Parameter.VAR_KEYWORD:
            given |= value
        elif parameter is not inspect.Parameter.VAR_POSITIONAL:
            given[name] = value
        elif value:
            raise NotDescribedError(_class_path(kind))
    return {"class_path": _class_path(kind), "init_args": describe(given)}


def _class_path(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _is_hidden(kind: type) -> bool:
    """Whether another process can't import the class by its name."""
    return "<locals>" in kind.__qualname__ or kind.__module__ == "__main__"
