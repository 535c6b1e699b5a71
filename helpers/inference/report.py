"""Write the report as report.html, a self-contained page, and as report.json for programs."""

from collections import Counter
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
from helpers.core.records import caption_costs, left_out
from helpers.core.run import Run
from helpers.core.suffix import strip_suffix
from helpers.figures.trials import read_trials
from helpers.inference.draw.sampler import Sampler, make_requests
from helpers.inference.judge.blind import count_picks
from helpers.inference.judge.encoders import ImageModel
from helpers.inference.judge.groups import Groups
from helpers.inference.judge.judgement import draw_groups, judge, measure_adherence
from helpers.inference.judge.variants import judge_light_lora, judge_speed_lora
from helpers.inference.page import PromptRows, render_page, update_page

FORMAT = 4  # of report.json; a report of another format is made again
NOT_JUDGED = ("grids", "blind_pairs", "controlnet")  # settings that no figure depends on


def report(config: InferenceConfig, sampler: Sampler) -> dict[str, Any]:
    """Judge the model, and write report.html and report.json. Return the content of report.json.

    Reports of the same model, dataset and config are kept. Raises RunError if the dataset is missing, or 04 replaced
    the model since it was loaded.
    """
    run = sampler.run
    run.require(run.dataset, "dataset")
    if folder_hash(run.model) != sampler.model_hash:
        raise RunError(
            f"{run.model} is another model than was loaded: run 05_inference from its top again"
        )
    inputs = {
        "report": FORMAT,
        "config": {k: v for k, v in asdict(config).items() if k not in NOT_JUDGED},
        "model": sampler.model_hash,
        "dataset": folder_hash(run.dataset),
    }
    if run.sweep_table.is_file():
        inputs["sweep"] = sha256(run.sweep_table)
    if run.report_html.is_file() and run.report_json.is_file():
        if read_json(run.report_json)["inputs"] == inputs:
            return update_report(run)
    run.write_config("inference", config)
    with run.timed("inference"):
        groups = draw_groups(config, sampler)
        rows = _draw_rows(config, sampler)
    figures = _figures(config, sampler, groups, inputs)
    with replacing_file(run.before_and_after) as tmp_path:
        rows.grid().save(tmp_path)
    write_text(run.report_html, render_page(sampler.trained, figures, groups, rows))
    write_json(run.report_json, figures)
    return figures


def _draw_rows(config: InferenceConfig, sampler: Sampler) -> PromptRows:
    tuned = make_requests(config, sampler)
    base = [replace(r, model="base") for r in tuned]
    plain = [replace(r, prompt=strip_suffix(r.prompt, sampler.suffix)) for r in tuned]
    rows = [sampler.draw(requests, config.batch_size) for requests in (base, tuned, plain)]
    return PromptRows([request.prompt for request in plain], *rows)


def _figures(
    config: InferenceConfig, sampler: Sampler, groups: Groups, inputs: dict[str, Any]
) -> dict[str, Any]:
    run, trained = sampler.run, sampler.trained
    verdict = trained.verdict
    encoder = ImageModel(config.encoder) if config.encoder else None
    judgement = asdict(judge(groups, encoder))
    judgement |= judgement.pop("metrics")
    if not sampler.suffix:
        judgement["suffix_switch"] = {"left_out": "the captions end in no suffix"}
    cost_usd, tokens = caption_costs(run.captions)
    rejected = left_out(run.posts, run.rejected)
    return {
        "run": run.name,
        "verdict": verdict_text(verdict, judgement),
        "remarks": trained.remarks(),
        "suffix": sampler.suffix,
        "validation_loss": {name: verdict[name] for name in ("base", "last", "best", "best_step")},
        "training": verdict["words"],
        **judgement,
        "speed": judge_speed_lora(config, sampler, groups),
        "light_lora": judge_light_lora(config, sampler, groups),
        "sweep": [asdict(row) for row in read_trials(run)],
        "prompt_adherence": measure_adherence(config, sampler, groups),
        "images": {split: len(trained.pictures(split)) for split in ("train", "validation")},
        "images_left_out": dict(Counter(row.kind or row.reason for row in rejected).most_common()),
        "seconds": run.read_seconds(),
        "cost_usd": cost_usd,
        "tokens": tokens,
        "hashes": {name: verdict[name] for name in ("dataset", "base_model")}
        | {"model": sampler.model_hash},
        **_side_by_side(run, sampler.model_hash),
        "inputs": inputs,
    }


def _side_by_side(run: Run, model_hash: str) -> dict[str, Any]:
    grids = [
        read_json(path) | {"file": f"{path.stem}.png"} for path in sorted(run.grids.glob("*.json"))
    ]
    own = [plan for plan in grids if plan["model"] == model_hash]
    return {"grids": own, "blind": count_picks(run, model_hash)}


def update_report(run: Run) -> dict[str, Any]:
    """Bring the grids and blind checks in report.html and report.json up to date. Return the content of report.json.

    Without a report, nothing is written and {} is returned.
    """
    if not (run.report_html.is_file() and run.report_json.is_file()):
        return {}
    figures = read_json(run.report_json)
    figures |= _side_by_side(run, figures["inputs"]["model"])
    before = run.report_html.read_text(encoding="utf-8")
    if (page := update_page(before, run, figures)) != before:
        write_json(run.report_json, figures)
        write_text(run.report_html, page)
    return figures


def verdict_text(verdict: dict[str, Any], judgement: dict[str, Any]) -> str:
    """Return the report's sentences on style, validation loss, the suffix, and copies of training images."""
    sentences = (
        _style_text(judgement["style_gain"]),
        _loss_text(verdict),
        _switch_text(judgement["suffix_switch"], judgement["blocked"]),
        _copies_text(judgement["copies"]),
    )
    return " ".join(filter(None, sentences))


def _style_text(gain: dict[str, Any]) -> str:
    if "left_out" in gain:
        return f"The style is not judged: {gain['left_out']}."
    steps = ((0.5, "moved to the artist's"), (0.1, "moved a little"))
    moved = next((words for low, words in steps if gain["low"] > low), "hardly moved")
    return (
        f"The style {moved}: style gain {gain['value']:.2f} ({gain['low']:.2f} to {gain['high']:.2f}), where 0 is the "
        "base model and 1 held-out art."
    )


def _loss_text(verdict: dict[str, Any]) -> str:
    change = verdict["last"] / verdict["base"] - 1
    text = f"The validation loss {'fell' if change <= 0 else 'rose'} by {abs(change):.0%}; {verdict['words']}"
    if (step := verdict.get("exported_step", verdict["steps"])) != verdict["steps"]:
        text += f", and the model is step {step}'s"
        if "exported_loss" in verdict:  # not in older versions' verdict.json
            change = verdict["exported_loss"] / verdict["base"] - 1
            text += f", where it had {'fallen' if change <= 0 else 'risen'} by {abs(change):.0%}"
    return f"{text}."


def _switch_text(switch: dict[str, Any], blocked: int) -> str:
    if "left_out" in switch:
        return f"{blocked} pictures were blocked." if blocked else ""
    works = switch["with_suffix"] >= 0.9 and switch["without_suffix"] >= 0.75
    return (
        f"The suffix {'is a switch' if works else 'does not switch cleanly'}: {switch['with_suffix']:.0%} of samples "
        f"with it look like the art, {switch['without_suffix']:.0%} without it do not."
    )


def _copies_text(copies: dict[str, Any]) -> str:
    if "left_out" in copies:
        return f"Whether it copies is not judged: {copies['left_out']}."
    return f"{copies['share']:.0%} of the samples come nearer to a training image than held-out art does."


def verify_report(run: Run) -> str:
    """Return the verdict, remarks and the report's path as lines. Raises RunError if the report is missing."""
    figures = read_json(run.require(run.report_json, "inference"))
    run.require(run.report_html, "inference")
    return "\n".join([figures["verdict"], *figures.get("remarks", []), str(run.report_html)])
