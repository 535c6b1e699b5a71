"""report.html, one page that stands alone, and report.json, the same figures for machines."""

from dataclasses import asdict, replace
from typing import Any

from helpers.config import InferenceConfig
from helpers.core.errors import RunError
from helpers.core.files import (
    folder_hash,
    read_json,
    replacing_file,
    sha256,
    write_json,
    write_text,
)
from helpers.core.records import caption_costs
from helpers.core.run import Run
from helpers.core.suffix import strip_suffix
from helpers.figures.trials import read_trials
from helpers.inference.draw.sampler import Studio, requests_of
from helpers.inference.judge.encoders import ImageModel
from helpers.inference.judge.judgement import Groups, adherence, draw_groups, draw_probe, judge
from helpers.inference.page import Rows, page

FORMAT = 2  # of the report: one that an older version wrote is made anew


def report(config: InferenceConfig, studio: Studio) -> dict[str, Any]:
    """Judge the model and write both reports, unless they are there for this very model, data and config.

    Raises RunError if there is no dataset to judge it by, or 04 has put another model in its place since it was loaded.
    """
    run = studio.run
    run.require(run.dataset, "dataset")
    if folder_hash(run.model) != studio.model_hash:
        raise RunError(
            f"{run.model} is another model than was loaded: run 05_inference from its top again"
        )
    inputs = {
        "report": FORMAT,
        "config": asdict(config),
        "model": studio.model_hash,
        "dataset": folder_hash(run.dataset),
    }
    if run.sweep_table.is_file():
        inputs["sweep"] = sha256(run.sweep_table)
    if run.report_html.is_file() and run.report_json.is_file():
        there = read_json(run.report_json)
        if there["inputs"] == inputs:
            return there
    run.write_config("inference", config)
    with run.timed("inference"):
        groups = draw_groups(config, studio)
        groups = replace(groups, probe=draw_probe(config, studio))
        rows = _draw_rows(config, studio)
    figures = _figures(config, studio, groups, inputs)
    with replacing_file(run.before_and_after) as beside:
        rows.grid().save(beside)
    write_text(run.report_html, page(studio.trained, figures, groups, rows))
    write_json(run.report_json, figures)
    return figures


def _draw_rows(config: InferenceConfig, studio: Studio) -> Rows:
    """The fixed prompts by the base model, the tuned one, and the tuned one without the suffix."""
    asked = requests_of(config, studio)
    plain = [replace(r, prompt=strip_suffix(r.prompt, studio.suffix)) for r in asked]
    requests = [[replace(request, model="base") for request in asked], asked, plain]
    drawn = [studio.draw(row, config.batch_size) for row in requests]
    return Rows([request.prompt for request in plain], *drawn)


def _figures(
    config: InferenceConfig, studio: Studio, groups: Groups, inputs: dict[str, Any]
) -> dict[str, Any]:
    run = studio.run
    verdict = studio.trained.verdict
    encoder = ImageModel(config.encoder) if config.encoder else None
    judgement = asdict(judge(groups, encoder))
    if not studio.suffix:
        judgement["suffix_switch"] = {"left_out": "the captions end in no suffix"}
    return {
        "run": run.name,
        "verdict": words(verdict, judgement),
        "remarks": studio.trained.remarks(),
        "suffix": studio.suffix,
        "validation_loss": {name: verdict[name] for name in ("base", "last", "best", "best_step")},
        "training": verdict["words"],
        **judgement,
        "sweep": [asdict(row) for row in read_trials(run)],
        "prompt_adherence": adherence(config, studio, groups),
        **_costs(studio),
        "hashes": {name: verdict[name] for name in ("dataset", "base_model")}
        | {"model": studio.model_hash},
        "inputs": inputs,
    }


def _costs(studio: Studio) -> dict[str, Any]:
    run, splits = studio.run, ("train", "validation")
    cost_usd, tokens = caption_costs(run.captions)
    return {
        "images": {split: len(studio.trained.pictures(split)) for split in splits},
        "seconds": run.read_seconds(),
        "cost_usd": cost_usd,
        "tokens": tokens,
    }


def words(verdict: dict[str, Any], judgement: dict[str, Any]) -> str:
    """The verdict in a sentence or two; what could not be judged is said with its reason."""
    change = verdict["last"] / verdict["base"] - 1
    loss = f"The validation loss {'fell' if change <= 0 else 'rose'} by {abs(change):.0%}; {verdict['words']}"
    if (step := verdict.get("exported_step", verdict["steps"])) != verdict["steps"]:
        loss += f", and the model is step {step}'s"
        if "exported_loss" in verdict:  # older versions did not tell
            change = verdict["exported_loss"] / verdict["base"] - 1
            loss += f", where it had {'fallen' if change <= 0 else 'risen'} by {abs(change):.0%}"
    said = [
        _style_words(judgement["style_gain"]),
        f"{loss}.",
        _switch_words(judgement),
        _copy_words(judgement["copies"]),
    ]
    return " ".join(sentence for sentence in said if sentence)


def _style_words(gain: dict[str, Any]) -> str:
    if "left_out" in gain:
        return f"The style is not judged: {gain['left_out']}."
    moved = (
        "moved to the artist's"
        if gain["low"] > 0.5
        else "moved a little"
        if gain["low"] > 0.1
        else "hardly moved"
    )
    return (
        f"The style {moved}: style gain {gain['value']:.2f} ({gain['low']:.2f} to {gain['high']:.2f}), where 0 is the "
        "base model and 1 held-out art."
    )


def _switch_words(judgement: dict[str, Any]) -> str:
    switch = judgement["suffix_switch"]
    if "left_out" in switch:
        return f"{judgement['blocked']} pictures were blocked." if judgement["blocked"] else ""
    works = switch["with_suffix"] >= 0.9 and switch["without_suffix"] >= 0.75
    return (
        f"The suffix {'is a switch' if works else 'does not switch cleanly'}: {switch['with_suffix']:.0%} of samples "
        f"with it look like the art, {switch['without_suffix']:.0%} without it do not."
    )


def _copy_words(copies: dict[str, Any]) -> str:
    if "left_out" in copies:
        return f"Whether it copies is not judged: {copies['left_out']}."
    return f"{copies['share']:.0%} of the samples come nearer to a training image than held-out art does."


def verify_report(run: Run) -> str:
    """Say the verdict and where the report lies. Raises RunError if it is not there."""
    figures = read_json(run.require(run.report_json, "inference"))
    run.require(run.report_html, "inference")
    return "\n".join([figures["verdict"], *figures.get("remarks", []), str(run.report_html)])
