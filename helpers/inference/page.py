"""The page of report.html: all pictures inside it, nothing to fetch, no script; the sliders need one attribute each."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from PIL import Image

from helpers.core.files import read_json
from helpers.core.records import Post, Rejection, latest, read_rows
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
from helpers.inference.judge.judgement import Groups
from helpers.inference.trained import Trained

TEMPLATE = "report.html.j2"
IN_ONE_ROW = 6  # prompts that a preview shows side by side


@dataclass(frozen=True)
class Rows:
    """The fixed prompts, without the suffix, drawn three times at the same seeds."""

    prompts: list[str]
    base: list[Image.Image]
    tuned: list[Image.Image]
    plain: list[Image.Image]  # tuned, without the suffix

    def grid(self) -> Image.Image:
        """All three under each other."""
        titles = (
            "base model, with the suffix",
            "tuned, with the suffix",
            "tuned, without the suffix",
        )
        images = [*self.base, *self.tuned, *self.plain]
        return grid(images, len(self.prompts), self.prompts, titles, cell_px=192)


def page(trained: Trained, figures: dict[str, Any], groups: Groups, rows: Rows) -> str:
    """The whole page as HTML; every word in it is escaped."""
    run = trained.run
    seen, held_out = (trained.pictures(split) for split in ("train", "validation"))
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    return environment.get_template(TEMPLATE).render(
        figures=figures,
        suffix=trained.suffix,
        posts=_accounts(run),
        sliders=[
            (prompt, data_url(before), data_url(after))
            for prompt, before, after in zip(rows.prompts, rows.base, rows.tuned, strict=True)
        ],
        three_rows=data_url(rows.grid()),
        curves=data_url(loss_curves(trained.log)),
        steps=_steps(trained),
        prompts=rows.prompts,
        contact=data_url(contact_sheet(path for path, _ in seen)),
        held_out=held_out and data_url(contact_sheet((path for path, _ in held_out), most=20)),
        captions=[(path.name, caption + trained.suffix) for path, caption in evenly(seen, 8)],
        rejected=read_rows(run.rejected, Rejection),
        samples=data_url(_samples(groups)),
        pairs=_pairs(figures["copies"], groups.tuned, groups.train),
        probed=_pairs(figures["copies"]["probe"], groups.probe, groups.train),
        sweep=_sweep(run),
        configs={stage: _settings(trained, stage) for stage in STAGES},
    )


def _sweep(run: Run) -> dict[str, Any] | None:
    """The trials of a sweep, and their pictures; None where there was none."""
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


def _settings(trained: Trained, stage: str) -> dict[str, Any]:
    """A stage's settings, 04's those of this model, without where on a disk something lies: the page is to be sent."""
    path = trained.run.config(stage)
    kept = trained.settings if stage == "train" else read_json(path) if path.is_file() else {}
    return {k: Path(v).name if str(v).startswith(("/", "~")) else v for k, v in kept.items()}


def _accounts(run: Run) -> dict[str, str]:
    posts = list(latest(read_rows(run.posts, Post)).values())
    return {
        "images": f"{len(posts)} images of {len({post.shortcode for post in posts})} posts",
        "accounts": ", ".join(sorted({post.account for post in posts} - {""})) or "not recorded",
        "permission": ", ".join(sorted({post.permission for post in posts})),
    }


def _steps(trained: Trained, most: int = 10) -> list[tuple[int, str]]:
    """(step, picture) of the previews, evenly picked, without the prompts that stand below each."""
    files = trained.previews()
    picked = sorted({*evenly(files, most), *files[-1:]})
    count = len(trained.settings["prompts"]) or 4
    return [
        (int(path.stem.removeprefix("step-")), data_url(_first_row(open_rgb(path), count)))
        for path in picked
    ]


def _first_row(sheet: Image.Image, count: int) -> Image.Image:
    if count > IN_ONE_ROW:
        return sheet
    cell_px = (sheet.width - GAP_PX) // count - GAP_PX
    return sheet.crop((0, 0, sheet.width, cell_px + GAP_PX))


def _samples(groups: Groups, most: int = 12) -> Image.Image:
    """Samples of held-out captions by the base and, below, by the tuned model."""
    shown = evenly(list(zip(groups.base, groups.tuned, strict=True)), most)
    images = [before for before, _ in shown] + [after for _, after in shown]
    return grid(images, len(shown), cell_px=128, row_titles=("base model", "tuned"))


def _pairs(
    copies: dict[str, Any] | None, samples: list[Image.Image], train: list[Image.Image]
) -> list[dict[str, Any]]:
    """Each sample that came nearest to a training image, beside that image."""
    if not copies:
        return []
    seen = [image for image in samples if not is_blocked(image)]
    return [
        {
            "image": data_url(grid([seen[pair["sample"]], train[pair["train"]]], 2, cell_px=144)),
            "likeness": pair["likeness"],
            "is_likely": pair["likeness"] > copies.get("threshold", 1),
        }
        for pair in copies["pairs"][:4]
    ]
