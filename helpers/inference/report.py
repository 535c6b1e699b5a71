"""report.html, one page that stands alone, and report.json, the same figures for machines."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from PIL import Image

from helpers.config import InferenceConfig
from helpers.inference.judge import Groups, draw_groups, judge, split_paths
from helpers.inference.sample import Request, Studio, requests_of
from helpers.pictures import (
    contact_sheet,
    data_url,
    evenly,
    figure_svg,
    grid,
    loss_curves,
    open_rgb,
)
from helpers.records import Caption, Post, Rejection, latest, read_log, read_metadata, read_rows
from helpers.run import STAGES, Run
from helpers.store import folder_hash, read_json, write_json, write_text

TEMPLATE = "report.html.j2"


def report(config: InferenceConfig, studio: Studio) -> dict[str, Any]:
    """Judge the model and write both reports, unless they are there for this very model, data and config."""
    run = studio.run
    inputs = {
        "config": asdict(config),
        "model": studio.model_hash,
        "dataset": folder_hash(run.dataset),
    }
    if run.report_html.is_file() and run.report_json.is_file():
        there = read_json(run.report_json)
        if there["inputs"] == inputs:
            return there
    with run.timed("inference"):
        groups = draw_groups(config, studio)
        trios = _draw_trios(config, studio)
    figures = _figures(studio, groups, inputs)
    write_text(run.report_html, _page(studio, figures, groups, trios))
    write_json(run.report_json, figures)
    return figures


def _draw_trios(config: InferenceConfig, studio: Studio) -> list[Image.Image]:
    """The fixed prompts by the base model, the tuned one, and the tuned one without the suffix, row after row."""
    asked = requests_of(config, studio)
    rows = [
        [Request(**asdict(request) | {"model": "base"}) for request in asked],
        asked,
        [
            Request(**asdict(request) | {"prompt": request.prompt.removesuffix(studio.suffix)})
            for request in asked
        ],
    ]
    return [image for row in rows for image in studio.draw(row, config.batch_size)]


def _figures(studio: Studio, groups: Groups, inputs: dict[str, Any]) -> dict[str, Any]:
    run = studio.run
    verdict = read_json(run.verdict)
    judgement = asdict(judge(groups))
    captions = list(latest(read_rows(run.captions, Caption)).values())
    return {
        "run": run.name,
        "verdict": words(verdict, judgement),
        "validation_loss": {name: verdict[name] for name in ("base", "last", "best", "best_step")},
        "training": verdict["words"],
        **judgement,
        "images": {
            split: len(read_metadata(run.split_metadata(split)))
            for split in ("train", "validation")
        },
        "seconds": run.read_seconds(),
        "cost_usd": 0.0,
        "tokens": sum(row.input_tokens + row.output_tokens for row in captions),
        "hashes": {
            "dataset": verdict["dataset"],
            "base_model": verdict["base_model"],
            "model": studio.model_hash,
        },
        "inputs": inputs,
    }


def words(verdict: dict[str, Any], judgement: dict[str, Any]) -> str:
    """The verdict in a sentence or two."""
    gain, switch = judgement["style_gain"], judgement["suffix_switch"]
    fall = 1 - verdict["last"] / verdict["base"]
    moved = (
        "moved to the artist's"
        if gain["low"] > 0.5
        else "moved a little"
        if gain["low"] > 0.1
        else "hardly moved"
    )
    works = switch["with_suffix"] >= 0.9 and switch["without_suffix"] >= 0.75
    return (
        f"The style {moved}: style gain {gain['value']:.2f} ({gain['low']:.2f} to {gain['high']:.2f}), where 0 is the "
        f"base model and 1 held-out art. The held-out loss fell by {fall:.0%}; {verdict['words']}. "
        f"The suffix {'is a switch' if works else 'does not switch cleanly'}: {switch['with_suffix']:.0%} of samples "
        f"with it look like the art, {switch['without_suffix']:.0%} without it do not. "
        f"{judgement['copies']['share']:.0%} of the samples come nearer to a training image than held-out art does."
    )


def _page(studio: Studio, figures: dict[str, Any], groups: Groups, trios: list[Image.Image]) -> str:
    run = studio.run
    prompts = [
        request.prompt.removesuffix(studio.suffix)
        for request in requests_of(_config_of(run), studio)
    ]
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    return environment.get_template(TEMPLATE).render(
        figures=figures,
        suffix=studio.suffix,
        stages=STAGES,
        posts=_accounts(run),
        trios=data_url(_trio_grid(trios, prompts)),
        curves=figure_svg(loss_curves(read_log(run.train_log))),
        previews=[
            (path.stem.removeprefix("step-").lstrip("0") or "0", data_url(open_rgb(path)))
            for path in _preview_paths(run)
        ],
        contact=data_url(contact_sheet(split_paths(run, "train"))),
        held_out=data_url(contact_sheet(split_paths(run, "validation"), most=20)),
        captions=evenly(read_metadata(run.split_metadata("train")), 8),
        rejected=read_rows(run.rejected, Rejection),
        likest=data_url(_likest_pair(figures, groups)),
        configs={
            stage: read_json(run.config(stage)) for stage in STAGES if run.config(stage).is_file()
        },
    )


def _config_of(run: Run) -> InferenceConfig:
    return InferenceConfig(**run.read_config("inference"))


def _accounts(run: Run) -> dict[str, str]:
    posts = list(latest(read_rows(run.posts, Post)).values())
    return {
        "images": f"{len(posts)} images of {len({post.shortcode for post in posts})} posts",
        "accounts": ", ".join(sorted({post.account for post in posts} - {""})) or "not recorded",
        "permission": ", ".join(sorted({post.permission for post in posts})),
    }


def _trio_grid(trios: list[Image.Image], prompts: list[str]) -> Image.Image:
    titles = ("base model, with the suffix", "tuned, with the suffix", "tuned, without the suffix")
    columns = len(trios) // 3
    return grid(
        trios, columns, labels=[*prompts, *prompts, *prompts], row_titles=titles, cell_px=192
    )


def _preview_paths(run: Run) -> list[Path]:
    return evenly(sorted(run.previews.glob("step-*.png")), 8)


def _likest_pair(figures: dict[str, Any], groups: Groups) -> Image.Image:
    likest = figures["copies"]["likest"]
    pair = [groups.tuned[likest["sample"]], groups.train[likest["train"]]]
    return grid(pair, 2, labels=["sample", "nearest training image"], cell_px=192)


def verify_report(run: Run) -> str:
    """Say the verdict and where the report lies. Raises RunError if it is not there."""
    figures = read_json(run.require(run.report_json, "inference"))
    run.require(run.report_html, "inference")
    return f"{figures['verdict']}\n{run.report_html}"
