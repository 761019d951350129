"""The folder that a mistake is made in: a small collection of two experiments, its shards, and ways to spoil them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True, slots=True, kw_only=True)
class Mistake:
    """Something that goes wrong; what is said of it stands in docs/MISTAKES.md."""

    what: str
    """What the user did, as docs/MISTAKES.md says it."""
    make: Callable[[World], list[str] | Callable[[], object]]
    """Spoils the folder; returns the command line to run, without the program's name, or a call from Python."""
    status: int = 2
    """Exit status: 2 is refused; 0 goes on and says so; 1 is `verify` that found damage."""


@dataclass(slots=True)
class World:
    """A folder with experiments.yaml, plates e0 and e1, tracks, shards and configs; the working directory is here."""

    root: Path

    @property
    def yaml(self) -> Path:
        """experiments.yaml."""
        return self.root / "experiments.yaml"

    def edit_yaml(self, change: Callable[[dict[str, Any]], object]) -> None:
        """Change experiments.yaml as a document."""
        document = yaml.safe_load(self.yaml.read_text())
        change(document)
        self.yaml.write_text(yaml.safe_dump(document, sort_keys=False))

    def set_experiment(self, **values: Any) -> None:
        """Set keys of the first experiment; None removes a key."""

        def change(document: dict[str, Any]) -> None:
            entry = document["experiments"][0]
            for key, value in values.items():
                if value is None:
                    entry.pop(key)
                else:
                    entry[key] = value

        self.edit_yaml(change)

    def set_options(self, **values: Any) -> None:
        """Set keys of `shards:`."""
        self.edit_yaml(lambda document: document["shards"].update(values))

    def tracks(self, fov: str = "A/1/0") -> Path:
        """Track table of a FOV of the first experiment."""
        return self.root / "e0" / "tracks" / fov / "tracks.csv"

    def edit_tracks(self, change: Callable[[list[str]], list[str]], fov: str = "A/1/0") -> None:
        """Change the lines of a track table, the header first."""
        path = self.tracks(fov)
        path.write_text("\n".join(change(path.read_text().splitlines())) + "\n")

    def each_tracks(self, change: Callable[[list[dict[str, str]]], list[dict[str, str]]], names: str = "e0") -> None:
        """Change the rows of all track tables of an experiment."""
        for path in sorted((self.root / names / "tracks").rglob("*.csv")):
            header, *lines = path.read_text().splitlines()
            columns = header.split(",")
            rows = change([dict(zip(columns, line.split(","), strict=True)) for line in lines])
            path.write_text("\n".join([header, *(",".join(row[c] for c in columns) for row in rows)]) + "\n")

    def edit_json(self, path: str, change: Callable[[dict[str, Any]], object]) -> None:
        """Change a JSON file."""
        file = self.root / path
        document = json.loads(file.read_text())
        change(document)
        file.write_text(json.dumps(document))

    def config(self, name: str = "fit.yaml", **data: Any) -> str:
        """Write a small copy of a shipped config, with keys of `data` set; return its name."""
        shipped = yaml.safe_load((Path(__file__).parent.parent.parent / "configs" / name).read_text())
        shipped["data"].update({"tau_range": [0.5, 1.5], "batch_size": 8, "num_workers": 0, **data})
        shipped["trainer"].update(accelerator="cpu", max_epochs=1, logger=False)
        shipped["model"]["encoder"]["init_args"] |= {"backbone": "resnet10", "in_stack_depth": 3}  # as the shards have
        (self.root / name).write_text(yaml.safe_dump(shipped))
        return name

    def snapshot(self) -> Mapping[str, tuple[int, int]]:
        """Size and time of every file that a user would miss: shards, configs, checkpoints, tables."""
        return {
            str(path.relative_to(self.root)): (status.st_size, status.st_mtime_ns)
            for path in self.root.rglob("*")
            if path.is_file() and (status := path.stat())
        }


def shorten(text: str, root: Path) -> str:
    """Take the test's folder out of a message, as the user's own folder would not be there."""
    return text.replace(str(root) + os.sep, "").replace(str(root), ".")
