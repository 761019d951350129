"""What the demo made, to the page that a reader opens first: what was run, what came of it, and what to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.image
import numpy as np

from dynaclr_wds.evaluate.probes import NEIGHBOURS
from dynaclr_wds.pages.markup import Html, block, bullets, command, grid, heading, note, paragraph
from dynaclr_wds.pages.pictures import show_image
from dynaclr_wds.pages.shell import Page, Section
from dynaclr_wds.pages.tables import table
from dynaclr_wds.words import count_of, size_of

PAGES = (
    ("before.html", "Plates", "What there is before a build: cells, tracks and divisions, what a build would store, a "
     "few frames, and what looks wrong."),
    ("after.html", "Shards", "The same of what was built: pairs of patches of each condition, lineages, intensities, "
     "and when and where cells are."),
    ("preview.html", "Batches", "What a training step gets: pairs of patches, as they are read and as the network sees "
     "them, and which cells share a batch."),
    ("evaluation.html", "Embeddings", "Are they smooth over time, do they tell conditions apart in fields of view that "
     "are held out, do experiments lie apart, have they collapsed? Both networks beside the raw pixels."),
)  # fmt: skip
"""Files beside the report, with a title and what they show."""

PIXELS = "PCA of raw pixels"
"""What networks are compared with."""
_CLEAR = 0.05
"""A vote is taken for better than chance from here on."""
_MEANING = (
    "Each number is the share of cells whose condition is found by a vote of their nearest neighbours, averaged over "
    "the conditions (balanced accuracy). 1 is always; chance is a coin.",
    "Neighbours are cells of other fields of view, so a cell is never found by its own surroundings.",
    "“both”: both channels. A column with the name of a channel: that channel alone.",
    "PCA of raw pixels is what one gets without any network: an embedding that is no better has learned nothing.",
)
_OWN = """dynaclr-wds init plate.zarr tracks          # writes experiments.yaml: check the lines marked CHANGE
dynaclr-wds inspect experiments.yaml --html before.html
dynaclr-wds init experiments.yaml           # writes configs/ to fit your plates
dynaclr-wds build experiments.yaml --out shards
dynaclr-wds preview -c configs/fit.yaml --html preview.html
dynaclr-wds fit -c configs/fit.yaml
dynaclr-wds predict --ckpt last.ckpt --out embeddings.parquet
dynaclr-wds evaluate embeddings.parquet --shards shards --html report.html"""
_NEXT = (
    "README.md says what each of these commands needs; docs/TUTORIAL.md goes this way slowly.",
    "docs/first_steps.ipynb does it in Python.",
    "tensorboard --logdir demo shows the curves of the two trainings.",
    "Where a page says bad or fair of something, it also says what to do about it.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A command that was run."""

    what: str
    """What it does, in a sentence."""
    command: str
    """As it is typed, without the program's name."""
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What the demo made, and how good it is."""

    steps: Sequence[Step]
    seconds: float
    cells: int
    experiments: int
    shards: int
    shard_bytes: int
    held_out: str
    """Experiment that no network was trained on."""
    conditions: Sequence[str]
    judged: int
    """Cells that were voted on."""
    late_hpi: float
    """From which hour on cells were judged."""
    scores: Mapping[str, Mapping[str, float]]
    """What was voted by → `both` or a channel → balanced accuracy."""
    picture: Path


def make_page(made: Outcome, folder: Path) -> Page:
    """Put what was made on a page.

    Parameters
    ----------
    made
        What the demo made.
    folder
        Where the page will be; pages that lie there are linked.
    """
    sections = [
        Section(title="In short", content=_sum_up(made)),
        Section(title="Look at it", content=[_list_pages(folder)]),
        Section(title="How well neighbours vote", content=_show_scores(made)),
        Section(title="A batch of the first training", content=[_show_picture(made)]),
        Section(title="What was run", content=_list_steps(made)),
        Section(title="What to do next", content=[paragraph("With your own plates:"), command(_OWN), bullets(_NEXT)]),
    ]
    return Page(
        title="From plates to embeddings",
        lead=(
            f"The demo: {made.cells:,} simulated cells in {count_of(made.experiments, 'experiment')}, two small "
            f"networks, {made.seconds / 60:.1f} minutes."
        ),
        sections=sections,
        made_by="make demo",
    )


def _sum_up(made: Outcome) -> list[Html]:
    best = max((name for name in made.scores if name != "chance"), key=lambda name: made.scores[name]["both"])
    both = {name: f"{row['both']:.2f}" for name, row in made.scores.items()}
    others = ", ".join(f"{name} {value}" for name, value in both.items() if name != best)
    said = (
        f"In {made.held_out}, which no network has seen, the neighbours of a cell tell "
        f"{' from '.join(made.conditions)} cells best by “{best}”: {both[best]} ({others})."
    )
    alive = best != PIXELS and made.scores[best]["both"] > made.scores["chance"]["both"] + _CLEAR
    return [
        note(said, "good" if alive else "fair"),
        paragraph(
            f"Plates and tracks of {made.experiments} experiments were simulated and {made.cells:,} cells cut out of "
            f"them, into {made.shards} shards of {size_of(made.shard_bytes)} in all. Two networks were trained on "
            f"{made.experiments - 1} of the experiments, without any label, and then embedded all of them: the first "
            "sees both channels of a cell at once, the second one channel at a time (a bag of channels)."
        ),
        paragraph(
            "Simulator and settings were tuned while looking at this vote. So take it as a check that all parts work "
            "together, not as a result."
        ),
    ]


def _list_pages(folder: Path) -> Html:
    there = [page for page in PAGES if (folder / page[0]).exists()]
    return grid([block([heading(title, file), paragraph(says)]) for file, title, says in there])


def _show_scores(made: Outcome) -> list[Html]:
    columns = list(dict.fromkeys(name for row in made.scores.values() for name in row))
    rows = [
        [what, *(f"{row[name]:.2f}" if name in row else "" for name in columns)] for what, row in made.scores.items()
    ]
    caption = (
        f"Vote of the {NEIGHBOURS} nearest cells on {' or '.join(made.conditions)}: {made.judged:,} cells of "
        f"{made.held_out}, from {made.late_hpi:g} hours post infection on."
    )
    return [table(["by", *columns], rows, caption), bullets(_MEANING)]


def _show_picture(made: Outcome) -> Html:
    pixels = (matplotlib.image.imread(made.picture)[:, :, :3] * 255).round().astype(np.uint8)
    alt = "Anchors, positives, and what the network sees of them"
    return show_image(pixels, alt, "A column is a cell: its anchor, its positive τ later, and both as augmented.")


def _list_steps(made: Outcome) -> list[Html]:
    content = []
    for step in made.steps:
        content += [paragraph(f"{step.what} ({step.seconds:.0f} s)"), command(f"dynaclr-wds {step.command}")]
    return content
