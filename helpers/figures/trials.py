"""Show a sweep's trials as a table and plots."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from PIL import Image

from helpers.core.files import read_json
from helpers.core.run import Run
from helpers.figures.pictures import evenly, open_rgb, stack, to_image

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from pandas.io.formats.style import Styler

MAX_LABELS = 16  # of an axis
COLOURS = ("#d1495b", "#8b6fa8", "#c9c0d0")  # the best, other complete ones, pruned ones


@dataclass(frozen=True)
class TrialRow:
    """A sweep trial's settings and results. `value` is the validation loss, or None without a result."""

    number: int
    state: str  # complete, pruned, running, waiting
    params: dict[str, Any]
    value: float | None
    curve: list[tuple[int, float]]  # (images seen, validation loss)
    steps: int
    images: int  # seen so far
    seconds: float
    cost_usd: float
    reason: str = ""  # why it was pruned

    @property
    def name(self) -> str:
        params = (f"{k} {_label(v, 'g')}" for k, v in self.params.items())
        return f"trial {self.number}: {', '.join(params)}"


def read_trials(run: Run) -> list[TrialRow]:
    """Return the sweep's trials in order of state and validation loss, or [] if the run has no sweep."""
    if not run.sweep_table.is_file():
        return []
    rows = [TrialRow(**row) for row in read_json(run.sweep_table)]
    order = ("complete", "pruned", "running", "waiting", "fail")
    return sorted(rows, key=lambda r: (order.index(r.state), r.value is None, r.value, r.number))


def best_trial(rows: Sequence[TrialRow]) -> TrialRow | None:
    """Return the complete trial with the lowest validation loss, or None if no trial is complete."""
    complete = [row for row in rows if row.state == "complete"]
    return min(complete, key=lambda r: (r.value is None, r.value, r.number), default=None)


def table(rows: Sequence[TrialRow]) -> "pd.DataFrame":
    """Return the trials as a DataFrame, indexed by trial number."""
    import pandas as pd

    records = [
        {"trial": r.number, **r.params, "validation loss": r.value, "state": r.state}
        | {"images": r.images, "minutes": round(r.seconds / 60, 1), "usd": round(r.cost_usd, 2)}
        | {"why": r.reason}
        for r in rows
    ]
    return pd.DataFrame(records).set_index("trial")


def plot_trials(rows: Sequence[TrialRow]) -> Image.Image:
    """Plot the trials twice: settings and loss in parallel coordinates, and validation loss over images seen."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 7.2), dpi=110, layout="constrained")
    coordinates, curves = figure.subplots(2)
    best = best_trial(rows)
    started = [row for row in rows if row.curve]
    _draw_coordinates(coordinates, [r for r in started if r.value is not None], best)
    for row in sorted(started, key=lambda r: r is best):
        curves.plot(*zip(*row.curve, strict=True), "o-", markersize=3, **_style(row, best))
    complete = [loss for r in started if r.state == "complete" for _, loss in r.curve]
    top = max(complete, default=None)  # a diverged trial is cut off
    curves.set(xlabel="images seen", ylabel="validation loss", ylim=(None, top and 1.1 * top))
    curves.spines[["top", "right"]].set_visible(False)
    curves.grid(alpha=0.25)
    _number_curves(curves, started, best)
    return to_image(figure)


def _number_curves(axes: "Axes", rows: Sequence[TrialRow], best: TrialRow | None) -> None:
    """Write each trial's number at the end of its loss curve, without overlap."""
    low, high = axes.get_ylim()
    for step in {row.curve[-1][0] for row in rows}:
        here = sorted((r for r in rows if r.curve[-1][0] == step), key=lambda r: r.curve[-1][1])
        heights = [min((r.curve[-1][1] - low) / (high - low), 1) for r in here]
        for row, height in zip(here, spread_labels(heights), strict=True):
            place, colour = (step, low + height * (high - low)), _style(row, best)["color"]
            axes.annotate(f" {row.number}", place, color=colour, fontsize=8, va="center")


def spread_labels(heights: Sequence[float], gap: float = 0.06) -> list[float]:
    """Move ascending label heights (0 to 1) at least `gap` apart. If that does not fit, space the labels evenly."""
    gap = min(gap, 1 / max(len(heights) - 1, 1))
    raised = list(accumulate(heights, lambda below, height: max(height, below + gap)))
    # heights raised above 1 come down again
    placed = accumulate(
        raised[::-1], lambda above, height: min(height, above - gap), initial=1 + gap
    )
    return list(placed)[:0:-1]


def _style(row: TrialRow, best: TrialRow | None) -> dict[str, Any]:
    rank = 0 if row is best else 1 if row.state == "complete" else 2
    return {"color": COLOURS[rank], "linewidth": 2.2 if rank == 0 else 1.2, "zorder": 3 - rank}


def _draw_coordinates(axes: "Axes", rows: Sequence[TrialRow], best: TrialRow | None) -> None:
    """Draw parallel coordinates: a vertical axis for each setting and the loss, and a line for each trial."""
    names = [*(rows[0].params if rows else ()), "validation loss"]
    columns = [[{**r.params, "validation loss": r.value}[name] for r in rows] for name in names]
    places = [_places(column) for column in columns]
    for i, row in enumerate(rows):
        axes.plot(range(len(names)), [place[i] for place in places], **_style(row, best))
    for x, (column, heights) in enumerate(zip(columns, places, strict=True)):
        axes.axvline(x, color="#2a2230", linewidth=0.8)
        labels = sorted(
            dict(zip(map(_label, column), heights, strict=True)).items(), key=lambda label: label[1]
        )
        labels = evenly(labels, MAX_LABELS)
        for (value, _), height in zip(labels, spread_labels([h for _, h in labels]), strict=True):
            axes.annotate(f" {value}", (x, height), fontsize=8, va="center")
    words = [name.replace("_", "_\n") if len(name) > 14 else name for name in names]
    axes.set(xticks=range(len(names)), xticklabels=words, yticks=[], xlim=(-0.1, len(names) - 0.7))
    axes.spines[:].set_visible(False)


def _label(value: Any, digits: str = ".4g") -> str:
    return format(value, digits) if isinstance(value, float) else str(value)


def _places(column: Sequence[Any]) -> list[float]:
    """Scale values to 0..1. Words go by rank, and positive numbers over a range of 10x or more by logarithm."""
    if not all(type(v) in (int, float) for v in column):
        words = sorted({str(v) for v in column})
        column = [words.index(str(v)) for v in column]
    low, high = min(column, default=0), max(column, default=0)
    if low > 0 and high >= 10 * low:
        column, low, high = [math.log(v) for v in column], math.log(low), math.log(high)
    return [(v - low) / (high - low) if high > low else 0.5 for v in column]


def stack_previews(run: Run, rows: Sequence[TrialRow], max_trials: int = 12) -> Image.Image | None:
    """Return the last previews of up to `max_trials` trials as one image, or None if there is no preview."""
    previews = [(row, run.trial(row.number).preview_files()) for row in rows]
    shown = [(row, files[-1]) for row, files in previews if files][:max_trials]
    titles = [
        f"{r.name} ({r.state}{'' if r.value is None else f', {r.value:.4f}'})" for r, _ in shown
    ]
    return stack([open_rgb(path) for _, path in shown], titles) if shown else None


def views(run: Run) -> "list[Styler | Image.Image]":
    """Return a sweep's table, plots and previews, in this order, or [] if the run has no sweep."""
    rows = read_trials(run)
    if not rows:
        return []
    # a Styler, since pandas truncates texts over 50 letters, and a reason ends with what to set
    styled = table(rows).style.format(precision=4, na_rep="")
    shown = [styled, plot_trials(rows), stack_previews(run, rows)]
    return [view for view in shown if view is not None]
