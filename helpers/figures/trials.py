"""A sweep's trials as a table and in pictures, read off what they left in the run's folder."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from PIL import Image

from helpers.core.files import read_json
from helpers.core.run import Run
from helpers.figures.pictures import drawn, evenly, open_rgb, stacked

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from pandas.io.formats.style import Styler

MOST_LABELS = 16  # of an axis
COLOURS = ("#d1495b", "#8b6fa8", "#c9c0d0")  # the best, other ended ones, pruned ones


@dataclass(frozen=True)
class TrialRow:
    """What came of a trial. `value` is the held-out loss of the model that it left."""

    number: int
    state: str  # complete, pruned, running, waiting
    params: dict[str, Any]
    value: float | None
    curve: list[tuple[int, float]]  # (images seen, held-out loss)
    steps: int
    images: int  # seen when it ended
    seconds: float
    cost_usd: float
    reason: str = ""  # why it was pruned

    @property
    def name(self) -> str:
        said = (
            f"{k} {v:g}" if isinstance(v, float) else f"{k} {v}" for k, v in self.params.items()
        )
        return f"trial {self.number}: {', '.join(said)}"


def read_trials(run: Run) -> list[TrialRow]:
    """The trials, the best first: complete ones by their loss, then pruned ones, then those to come."""
    if not run.sweep_table.is_file():
        return []
    rows = [TrialRow(**row) for row in read_json(run.sweep_table)]
    order = ("complete", "pruned", "running", "waiting", "fail")
    return sorted(rows, key=lambda r: (order.index(r.state), _loss(r), r.number))


def _loss(row: TrialRow) -> float:
    return math.inf if row.value is None else row.value


def best_of(rows: Sequence[TrialRow]) -> TrialRow | None:
    """The complete trial of the lowest loss."""
    ended = [row for row in rows if row.state == "complete"]
    return min(ended, key=lambda row: (_loss(row), row.number), default=None)


def table(rows: Sequence[TrialRow]) -> "pd.DataFrame":
    """The trials as a table, for a notebook."""
    import pandas as pd

    shown = [
        {"trial": r.number, **r.params, "held-out loss": r.value, "state": r.state}
        | {"images": r.images, "minutes": round(r.seconds / 60, 1), "usd": round(r.cost_usd, 2)}
        | {"why": r.reason}
        for r in rows
    ]
    return pd.DataFrame(shown).set_index("trial")


def plot_trials(rows: Sequence[TrialRow]) -> Image.Image:
    """Parallel coordinates of settings and loss, and the held-out curves over images seen."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 7.2), dpi=110, layout="constrained")
    coordinates, curves = figure.subplots(2)
    best = best_of(rows)
    begun = [row for row in rows if row.curve]
    _draw_coordinates(coordinates, [r for r in begun if r.value is not None], best)
    for row in sorted(begun, key=lambda r: r is best):
        curves.plot(*zip(*row.curve, strict=True), "o-", markersize=3, **_style(row, best))
    complete = [loss for r in begun if r.state == "complete" for _, loss in r.curve]
    top = max(complete, default=None)  # a diverged one leaves the picture
    curves.set(xlabel="images seen", ylabel="held-out loss", ylim=(None, top and 1.1 * top))
    curves.spines[["top", "right"]].set_visible(False)
    curves.grid(alpha=0.25)
    _number_curves(curves, begun, best)
    return drawn(figure)


def _number_curves(axes: "Axes", rows: Sequence[TrialRow], best: TrialRow | None) -> None:
    """Each curve's trial at its end; those that end at the same step stand above each other."""
    low, high = axes.get_ylim()
    for step in {row.curve[-1][0] for row in rows}:
        here = sorted((r for r in rows if r.curve[-1][0] == step), key=lambda r: r.curve[-1][1])
        heights = [min((r.curve[-1][1] - low) / (high - low), 1) for r in here]
        for row, height in zip(here, spread(heights), strict=True):
            place, colour = (step, low + height * (high - low)), _style(row, best)["color"]
            axes.annotate(f" {row.number}", place, color=colour, fontsize=8, va="center")


def spread(heights: Sequence[float], gap: float = 0.06) -> list[float]:
    """Where labels of rising heights from 0 to 1 are written: `gap` apart, or as far as there is room, and near."""
    gap = min(gap, 1 / max(len(heights) - 1, 1))
    placed: list[float] = []
    for height in heights:
        placed.append(max(height, placed[-1] + gap) if placed else height)
    for i in reversed(range(len(placed))):  # what was pushed out above comes down again
        above = placed[i + 1] - gap if i + 1 < len(placed) else 1
        placed[i] = min(placed[i], above)
    return placed


def _style(row: TrialRow, best: TrialRow | None) -> dict[str, Any]:
    rank = 0 if row is best else 1 if row.state == "complete" else 2
    return {"color": COLOURS[rank], "linewidth": 2.2 if rank == 0 else 1.2, "zorder": 3 - rank}


def _draw_coordinates(axes: "Axes", rows: Sequence[TrialRow], best: TrialRow | None) -> None:
    """A line a trial, over an upright axis for each setting and for the loss; lower is better."""
    names = [*(rows[0].params if rows else ()), "held-out loss"]
    columns = [[{**r.params, "held-out loss": r.value}[name] for r in rows] for name in names]
    places = [_places(column) for column in columns]
    for i, row in enumerate(rows):
        axes.plot(range(len(names)), [place[i] for place in places], **_style(row, best))
    for x, (column, heights) in enumerate(zip(columns, places, strict=True)):
        axes.axvline(x, color="#2a2230", linewidth=0.8)
        labels = sorted(dict(zip(map(_label, column), heights, strict=True)).items(), key=_height)
        labels = evenly(labels, MOST_LABELS)
        for (value, _), height in zip(labels, spread([h for _, h in labels]), strict=True):
            axes.annotate(f" {value}", (x, height), fontsize=8, va="center")
    words = [name.replace("_", "_\n") if len(name) > 14 else name for name in names]
    axes.set(xticks=range(len(names)), xticklabels=words, yticks=[], xlim=(-0.1, len(names) - 0.7))
    axes.spines[:].set_visible(False)


def _height(label: tuple[str, float]) -> float:
    return label[1]


def _label(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _places(column: Sequence[Any]) -> list[float]:
    """Heights from 0 to 1: numbers by size, by logarithm over a factor of ten; words in order of name."""
    if not all(type(v) in (int, float) for v in column):
        words = sorted({str(v) for v in column})
        column = [words.index(str(v)) for v in column]
    low, high = min(column, default=0), max(column, default=0)
    if low > 0 and high >= 10 * low:
        column, low, high = [math.log(v) for v in column], math.log(low), math.log(high)
    return [(v - low) / (high - low) if high > low else 0.5 for v in column]


def previews_of(run: Run, rows: Sequence[TrialRow], most: int = 12) -> Image.Image | None:
    """The last previews of each trial under each other: the same prompts at the same seeds, the best first."""
    files = [(row, run.trial(row.number).preview_files()) for row in rows]
    shown = [(row, found[-1]) for row, found in files if found][:most]
    titles = [
        f"{r.name} ({r.state}{'' if r.value is None else f', {r.value:.4f}'})" for r, _ in shown
    ]
    return stacked([open_rgb(path) for _, path in shown], titles) if shown else None


def views(run: Run) -> "list[Styler | Image.Image]":
    """What is to be seen of a run's sweep, in order: table, plots, previews; nothing where there was none."""
    rows = read_trials(run)
    if not rows:
        return []
    # pandas cuts a text of over 50 letters, and a reason ends with what to set
    whole = table(rows).style.format(precision=4, na_rep="")
    shown = [whole, plot_trials(rows), previews_of(run, rows)]
    return [view for view in shown if view is not None]
