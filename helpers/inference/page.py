"""Render report.html as a self-contained page: pictures are embedded, and there is no script.

Each slider has an inline event handler of one line.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Template
from PIL import Image

from helpers.core.files import read_json
from helpers.core.records import left_out
from helpers.core.run import STAGES, Run
from helpers.figures.pictures import (
    GAP_PX,
    contact_sheet,
    data_url,
    evenly,
    grid,
    loss_curves,
    open_rgb,
)
from helpers.figures.trials import plot_trials, read_trials, stack_previews
from helpers.inference.draw.sampler import is_blocked
from helpers.inference.judge.blind import describe_picks
from helpers.inference.judge.groups import Groups
from helpers.inference.judge.metrics import load_metrics
from helpers.inference.judge.variants import describe_variants
from helpers.inference.trained import Trained, summarize_posts

if TYPE_CHECKING:
    from pandas.io.formats.style import Styler

TEMPLATE = Path(__file__).parent / "report.html.j2"
SIDE_BY_SIDE = Path(__file__).parent / "side_by_side.html.j2"
# around the part that grids and blind checks change after the report is made
BEGIN, END = "<!-- side by side -->", "<!-- end of side by side -->"
MAX_IN_ROW = 6  # prompts that a preview shows side by side


@dataclass(frozen=True)
class PromptRows:
    """Three rows of pictures with equal prompts and seeds: base model, tuned model, tuned model without suffix."""

    prompts: list[str]  # without the suffix
    base: list[Image.Image]
    tuned: list[Image.Image]
    plain: list[Image.Image]  # by the tuned model, without the suffix

    def grid(self) -> Image.Image:
        """Draw the three rows of pictures one above the other, with a title for each row."""
        rows = ("base model, with", "tuned, with", "tuned, without")
        titles, images = [f"{row} the suffix" for row in rows], self.base + self.tuned + self.plain
        return grid(images, len(self.prompts), self.prompts, titles, cell_px=192)


def render_page(trained: Trained, figures: dict[str, Any], groups: Groups, rows: PromptRows) -> str:
    """Return the HTML of report.html, with captions and prompts escaped. `figures` is the content of report.json."""
    run = trained.run
    train, held_out = (trained.pictures(split) for split in ("train", "validation"))
    samples, titles = evenly(groups.base, 12) + evenly(groups.tuned, 12), ("base model", "tuned")
    return Template(TEMPLATE.read_text(encoding="utf-8"), autoescape=True).render(
        figures=figures,
        metrics=list(_describe_metrics(figures)),
        suffix=trained.suffix,
        posts=summarize_posts(run),
        sliders=[
            (prompt, data_url(before), data_url(after))
            for prompt, before, after in zip(rows.prompts, rows.base, rows.tuned, strict=True)
        ],
        three_rows=data_url(rows.grid()),
        side_by_side=_render_side_by_side(run, figures),
        curves=data_url(loss_curves(trained.log)),
        steps=_preview_steps(trained),
        prompts=rows.prompts,
        contact=data_url(contact_sheet(path for path, _ in train)),
        held_out=held_out and data_url(contact_sheet((path for path, _ in held_out), most=20)),
        captions=[(path.name, caption + trained.suffix) for path, caption in evenly(train, 8)],
        left_out=left_out(run.posts, run.rejected),
        samples=data_url(grid(samples, len(samples) // 2, cell_px=128, row_titles=titles)),
        pairs=_similar_pairs(figures["copies"], groups.tuned, groups.train),
        probed=_similar_pairs(figures["copies"]["probe"], groups.probe, groups.train),
        sweep=_sweep(run),
        configs={stage: _read_settings(trained, stage) for stage in STAGES},
    )


def _render_side_by_side(run: Run, figures: dict[str, Any]) -> str:
    sheets = [
        (plan, data_url(open_rgb(run.grids / plan["file"])))
        for plan in figures["grids"]
        if (run.grids / plan["file"]).is_file()
    ]
    rows = [describe_picks(against, found) for against, found in figures["blind"].items()]
    template = Template(SIDE_BY_SIDE.read_text(encoding="utf-8"), autoescape=True)
    return f"{BEGIN}\n{template.render(sheets=sheets, rows=rows)}\n{END}"


def update_page(page: str, run: Run, figures: dict[str, Any]) -> str:
    """Return the HTML of report.html with the grids and the blind checks of `figures`, and all else as it is."""
    before, found, rest = page.partition(BEGIN)
    after = rest.partition(END)[2]
    return f"{before}{_render_side_by_side(run, figures)}{after}" if found else page


def figures_table(figures: dict[str, Any]) -> "Styler":
    """Return the main results of report.json as a table of names, values and explanations."""
    import pandas as pd

    loss, gain, switch = (figures[k] for k in ("validation_loss", "style_gain", "suffix_switch"))
    fell = f"{loss['base']:.3f} to {loss['last']:.3f}"
    rows = [("validation loss", fell, "before and after training; smaller is better")]
    if reason := gain.get("left_out"):
        rows.append(("style gain", "not judged", reason))
    else:
        value = f"{gain['value']:.2f} ({gain['low']:.2f} to {gain['high']:.2f})"
        rows.append(("style gain", value, "0 is the base model, 1 held-out art; 95% interval"))
    if "left_out" not in switch:
        shares = f"{switch['with_suffix']:.0%} and {switch['without_suffix']:.0%}"
        words = "in the style with the suffix, and not in the style without it"
        rows.append(("suffix switch", shares, words))
    rows += _describe_metrics(figures)
    rows += [describe_picks(*found) for found in figures.get("blind", {}).items()]
    columns = ["figure", "value", "how to read it"]
    # a Styler, since pandas truncates texts over 50 letters
    shown = pd.DataFrame(rows, columns=columns).style.hide()
    return shown.set_table_styles([{"selector": "th, td", "props": "text-align: left"}])


def _describe_metrics(figures: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    for key, metric in load_metrics().items():
        found = figures[key]
        if reason := found.get("left_out"):
            yield metric.NAME, "not judged", reason
        else:
            yield metric.NAME, *metric.describe(found)
    yield from describe_variants(figures)


def _sweep(run: Run) -> dict[str, Any] | None:
    rows = read_trials(run)
    if not rows:
        return None
    previews = stack_previews(run, rows)
    return {
        "rows": rows,
        "plots": data_url(plot_trials(rows)),
        "previews": previews and data_url(previews),
        "cost_usd": sum(row.cost_usd for row in rows),
        "hours": sum(row.seconds for row in rows) / 3600,
    }


def _read_settings(trained: Trained, stage: str) -> dict[str, Any]:
    path = trained.run.config(stage)
    settings = trained.settings if stage == "train" else read_json(path) if path.is_file() else {}
    # the page may be shared: absolute paths are cut to their last part
    return {k: Path(v).name if str(v).startswith(("/", "~")) else v for k, v in settings.items()}


def _preview_steps(trained: Trained, max_count: int = 10) -> list[tuple[int, str]]:
    files = trained.previews()
    count = len(trained.settings["prompts"]) or 4
    steps = []
    for path in sorted({*evenly(files, max_count), *files[-1:]}):
        sheet = open_rgb(path)
        if count <= MAX_IN_ROW:  # the row's prompts are cropped off
            sheet = sheet.crop((0, 0, sheet.width, (sheet.width - GAP_PX) // count))
        steps.append((int(path.stem.removeprefix("step-")), data_url(sheet)))
    return steps


def _similar_pairs(
    copies: dict[str, Any] | None, samples: list[Image.Image], train: list[Image.Image]
) -> list[dict[str, Any]]:
    if not copies:
        return []
    shown = [image for image in samples if not is_blocked(image)]
    return [
        {
            "image": data_url(grid([shown[pair["sample"]], train[pair["train"]]], 2, cell_px=144)),
            "likeness": pair["likeness"],
            "is_likely": pair["likeness"] > copies.get("threshold", 1),
        }
        for pair in copies["pairs"][:4]
    ]
