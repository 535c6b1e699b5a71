"""What a variant of the model costs in style: its pictures judged as the model's are, at the same prompts and seeds."""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from typing import Any

from helpers.config import InferenceConfig
from helpers.core.errors import RunError
from helpers.inference.draw.request import Request
from helpers.inference.draw.sampler import Sampler
from helpers.inference.draw.speed import speed_words
from helpers.inference.draw.weights import LIGHT
from helpers.inference.judge.groups import Groups
from helpers.inference.judge.judgement import judged_requests, style_gain_of

TIMED = 2  # pictures by which the time of one is taken
Row = tuple[str, str, str]


def judge_speed_lora(config: InferenceConfig, sampler: Sampler, groups: Groups) -> dict[str, Any]:
    """Judge the model with the config's speed LoRA; {} without one, {"left_out": reason} if it cannot be taken."""
    try:
        speed = sampler.use_speed_lora(config)
    except RunError as error:
        return {"left_out": str(error)}
    if speed is None:
        return {}

    def fast(request: Request) -> Request:
        return replace(request, **speed.settings)

    requests = judged_requests(config, sampler)
    gain = _judge(sampler, config, groups, [fast(request) for request in requests])
    ratio = _seconds(sampler, requests, fast) / _seconds(sampler, requests, lambda r: r)
    told = {name: value for name, value in vars(speed).items() if name != "lora"}
    return gain | told | {"full_steps": config.num_inference_steps, "time": ratio}


def _seconds(
    sampler: Sampler, requests: list[Request], change: Callable[[Request], Request]
) -> float:
    changed = [change(request) for request in requests]
    sampler.draw(changed[:1])  # loads the weights
    began = time.perf_counter()
    sampler.draw(changed[:TIMED])
    return (time.perf_counter() - began) / TIMED


def judge_light_lora(config: InferenceConfig, sampler: Sampler, groups: Groups) -> dict[str, Any]:
    """Judge the base model with the config's light LoRA; {} without one, {"left_out": reason} if it cannot be made."""
    try:
        light = sampler.light_lora(config)
    except RunError as error:
        return {"left_out": str(error)}
    if light is None:
        return {}
    requests = [replace(request, model=LIGHT) for request in judged_requests(config, sampler)]
    told = {"rank": light.rank, "kept": light.kept, "outside": light.left_out}
    return _judge(sampler, config, groups, requests) | told | {"size_mb": light.size_mb}


def _judge(
    sampler: Sampler, config: InferenceConfig, groups: Groups, requests: list[Request]
) -> dict[str, Any]:
    drawn = sampler.draw(requests, config.batch_size)
    return {
        "style_gain": _as_dict(style_gain_of(groups, drawn)),
        "full_style_gain": _as_dict(style_gain_of(groups, groups.tuned)),
    }


def _as_dict(gain: Any) -> dict[str, Any]:
    return gain if isinstance(gain, dict) else asdict(gain)


def describe_variants(figures: dict[str, Any]) -> Iterator[Row]:
    """Yield a row of name, value and explanation for each variant that was judged, from the content of report.json."""
    speed, light = figures.get("speed"), figures.get("light_lora")
    if speed:
        yield _row("drawn fast", speed, _speed_words)
    if light:
        yield _row("light LoRA", light, _light_words)


def _row(name: str, found: dict[str, Any], words: Callable[[dict[str, Any]], str]) -> Row:
    gains = [found.get(kind, {}) for kind in ("style_gain", "full_style_gain")]
    if reason := next(filter(None, (part.get("left_out") for part in (found, *gains))), ""):
        return name, "not judged", reason
    gain = found["style_gain"]
    return name, f"{gain['value']:.2f} ({gain['low']:.2f} to {gain['high']:.2f})", words(found)


def _speed_words(found: dict[str, Any]) -> str:
    return f"{speed_words(found)} By {found['name']} (licence: {found['licence']})"


def _light_words(found: dict[str, Any]) -> str:
    return (
        f"Style gain of a LoRA of rank {found['rank']}, {found['size_mb']:.1f} MB, on the base; "
        f"{found['full_style_gain']['value']:.2f} of the model itself. It keeps {found['kept']:.0%} of the squared "
        f"change; {found['outside']:.1%} lies in norms, biases and other weights that no LoRA has"
    )
