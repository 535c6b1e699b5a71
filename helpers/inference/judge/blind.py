"""A blind check: a person picks between two pictures without knowing which is which, and the picks are counted."""

import json
import random
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from PIL import Image
from scipy.stats import binomtest

from helpers.config import InferenceConfig
from helpers.core.files import append_line
from helpers.core.run import Run
from helpers.figures.pictures import evenly, middle_square, open_rgb
from helpers.inference.draw.request import Request
from helpers.inference.draw.sampler import Sampler
from helpers.inference.draw.weights import STEP
from helpers.inference.judge.groups import Interval

ART, MODEL = "art", "tuned"
BLOCKED = "blocked"  # in place of a pick, where the safety checker blocked a picture
BLIND_SEED = 700  # added to the config's seed


@dataclass(frozen=True)
class Pair:
    """Two pictures to choose from: the model's, and one of what it is compared with."""

    id: str  # a hash of all that the pictures depend on
    against: str  # art, base, or a checkpoint such as step-000250
    request: Request  # of the model's picture
    art: Path | None  # of the held-out art, whose caption the model's picture has
    sides: tuple[str, str]  # what is shown on the left and on the right


def comparisons(sampler: Sampler) -> list[str]:
    """Return what the model can be compared with: held-out art if there is any, the base, other checkpoints."""
    has_art = bool(sampler.trained.pictures("validation"))
    itself = f"step-{sampler.trained.exported_step:06}"
    return [ART] * has_art + ["base", *(n for n in sampler.weights.steps() if n != itself)]


def count_pairs(config: InferenceConfig, sampler: Sampler, against: str) -> int:
    """Return the number of pairs of a comparison. Held-out art comes once each, so that pairs are independent."""
    if against != ART:
        return config.blind_pairs
    return min(config.blind_pairs, len(sampler.trained.pictures("validation")))


def make_pairs(config: InferenceConfig, sampler: Sampler, against: str) -> list[Pair]:
    """Return the pairs of a comparison, the same ones each time. Sides and order tell nothing."""
    trained = sampler.trained
    pictures = trained.pictures("validation") or trained.pictures("train")
    pictures = evenly(pictures, config.blind_pairs)
    pairs = []
    for number in range(count_pairs(config, sampler, against)):
        path, caption = pictures[number % len(pictures)]
        seed = config.seed + BLIND_SEED + number
        request = Request.of(config, sampler.styled(caption), seed, config.negative_prompt)
        pairs.append(_make_pair(sampler, against, request, path))
    random.Random(f"{config.seed} {against}").shuffle(pairs)
    return pairs


def _make_pair(sampler: Sampler, against: str, request: Request, path: Path) -> Pair:
    other = path.name if against == ART else sampler.settings(replace(request, model=against))
    content = json.dumps([sampler.settings(request), other], sort_keys=True)
    id = sha256(content.encode()).hexdigest()
    sides = (MODEL, against) if random.Random(id).random() < 0.5 else (against, MODEL)
    return Pair(id, against, request, path if against == ART else None, sides)


def draw_pair(sampler: Sampler, pair: Pair) -> tuple[Image.Image, Image.Image]:
    """Draw or load the pictures of a pair, left and right, at the same size."""
    shown = {MODEL: sampler.draw([pair.request])[0]}
    if pair.art:
        size = shown[MODEL].size
        art = middle_square(open_rgb(pair.art)).resize(size, Image.Resampling.LANCZOS)
        shown[ART] = art
    else:
        shown[pair.against] = sampler.draw([replace(pair.request, model=pair.against)])[0]
    left, right = (shown[name] for name in pair.sides)
    return left, right


def save_pick(sampler: Sampler, pair: Pair, picked: str) -> None:
    """Append a person's pick to blind.jsonl. `picked` is one of the pair's sides, or BLOCKED."""
    row = {"id": pair.id, "model": sampler.model_hash, "against": pair.against, "picked": picked}
    row |= {"left": pair.sides[0], "prompt": pair.request.prompt, "seed": pair.request.seed}
    append_line(sampler.run.blind, json.dumps(row, ensure_ascii=False))


def read_picks(run: Run, model_hash: str) -> list[dict[str, Any]]:
    """Return the picks between pictures of a model and others, the last one of each pair."""
    return list({row["id"]: row for row in _rows(run) if row["model"] == model_hash}.values())


def _rows(run: Run) -> Iterator[dict[str, Any]]:
    """Yield the picks of any model. A line that a kill cut off, or that is none, is passed over."""
    for line in run.blind.read_bytes().split(b"\n") if run.blind.is_file() else []:
        row = None
        with suppress(ValueError, RecursionError):
            row = json.loads(line)
        if isinstance(row, dict) and _is_pick(row):
            yield row


def _is_pick(row: dict[str, Any]) -> bool:
    against = row.get("against")
    is_known = against in (ART, "base") or isinstance(against, str) and STEP.fullmatch(against)
    is_whole = isinstance(row.get("id"), str) and isinstance(row.get("model"), str)
    return bool(is_known and is_whole and row.get("picked") in (MODEL, against, BLOCKED))


def count_picks(run: Run, model_hash: str) -> dict[str, dict[str, Any]]:
    """Return, for each comparison, in how many pairs the model's picture was picked, and the share with its interval.

    Pairs with a picture that the safety checker blocked do not count. The interval of 95% is Wilson's (1927,
    doi:10.1080/01621459.1927.10502953).
    """
    picks = [row for row in read_picks(run, model_hash) if row["picked"] != BLOCKED]
    found = {}
    for against in sorted({row["against"] for row in picks}):
        chosen = [row["picked"] == MODEL for row in picks if row["against"] == against]
        interval = wilson(sum(chosen), len(chosen))
        found[against] = {"picked": sum(chosen), "pairs": len(chosen)} | asdict(interval)
    return found


def wilson(count: int, total: int) -> Interval:
    """Return a share with its 95% score interval."""
    interval = binomtest(count, total).proportion_ci(0.95, "wilson")
    return Interval(count / total, float(interval.low), float(interval.high))


def describe_picks(against: str, found: dict[str, Any]) -> tuple[str, str, str]:
    """Return a comparison's name, value, and how to read it."""
    value = (
        f"{found['picked']} of {found['pairs']}: {found['value']:.0%} "
        f"({found['low']:.0%} to {found['high']:.0%})"
    )
    reading = "how often you found the model's picture closer to the art; 50% is no difference"
    if against == ART:
        reading = "how often you took the model's picture for the artist's; at 50% you could not tell them apart"
    return f"blind check against {title(against)}", value, reading


def title(against: str) -> str:
    """Return what people call that which the model is compared with."""
    titles = {ART: "held-out art", "base": "the base model"}
    return titles.get(against) or f"step {int(against[5:])}"
