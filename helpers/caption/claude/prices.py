"""Prices and request options of each Claude model, from the pricing and model pages of platform.claude.com."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

from helpers.config import CaptionConfig
from helpers.core.errors import RunError

PRICES_DATE = "October 2026"
MTOK = 1_000_000
HOUR_WRITE = 2.0  # times the input price
BATCH = 0.5  # times any price


@dataclass(frozen=True)
class Model:
    """A Claude model's prices in USD per million tokens, and the options of its requests."""

    input: float
    output: float
    cache_read: float
    cache_write: float  # for five minutes
    min_cache_tokens: int  # a shorter prefix is silently not cached; 4096 where not documented
    thinking: str = ""  # the `type` to request; empty omits it
    effort: str = ""
    thinks: bool = False  # output tokens include thinking
    last_day: str = ""  # ISO date of the end of a deprecated model


# fmt: off
MODELS = {
    #                          input output  read  write  cache  thinking         effort  thinks last day
    "claude-haiku-5-5":  Model( 0.10,  0.50, 0.01, 0.125,   512, "disabled"),
    "claude-sonnet-5-5": Model( 2.00, 10.00, 0.10, 2.50,    512, "between_tools", "low",  True),
    "claude-opus-5-5":   Model( 4.00, 20.00, 0.20, 5.00,   4096, "",              "low",  True),
    "claude-fable-5-1":  Model(10.00, 50.00, 0.25, 12.50,  4096, "",              "low",  True),
    "claude-haiku-4-5":  Model( 1.00,  5.00, 0.10, 1.25,   4096),
    "claude-sonnet-4-5": Model( 3.00, 15.00, 0.30, 3.75,   1024, last_day="2026-11-30"),
}
# fmt: on
RETIRED = {
    "claude-3-5-sonnet": "2025-10-28",  # the seed's
    "claude-3-sonnet": "2025-07-21",
    "claude-3-opus": "2026-01-05",
    "claude-3-7-sonnet": "2026-02-19",
    "claude-3-5-haiku": "2026-02-19",
    "claude-opus-4-0": "2026-06-15",
    "claude-opus-4-2025": "2026-06-15",
    "claude-sonnet-4-0": "2026-06-15",
    "claude-sonnet-4-2025": "2026-06-15",
    "claude-2": "2025-07-21",
    "claude-instant": "2024-11-06",
}


def find_model(config: CaptionConfig, today: date | None = None) -> tuple[Model, str]:
    """Return the prices and options of the chosen model, and a warning or "".

    Raises RunError for a model that is retired, or has a price neither in the table nor in price_usd.
    """
    name, today = config.model, today or date.today()
    for retired, day in RETIRED.items():
        if name.startswith(retired):
            raise RunError(_gone(name, day))
    if config.price_usd:
        price_in, price_out = (float(price) for price in config.price_usd)
        given = Model(price_in, price_out, 0.1 * price_in, 1.25 * price_in, 1024, thinks=True)
        return given, f"{name} at the price given, ${price_in} in and ${price_out} out"
    model = MODELS.get(re.sub(r"-\d{8}$", "", name))
    if model is None:
        raise RunError(
            f"model {name!r} has no price here (of {PRICES_DATE}: {', '.join(MODELS)}): choose one of these, "
            'or give its USD per million tokens as more={"price_usd": (input, output)}'
        )
    if not model.last_day:
        return model, ""
    if today > date.fromisoformat(model.last_day):
        raise RunError(_gone(name, model.last_day))
    return model, f"{name} is deprecated: its last day is {_day(model.last_day)}"


def _gone(name: str, day: str) -> str:
    return f"model {name!r} was retired on {_day(day)}: set model to claude-haiku-5-5"


def _day(iso: str) -> str:
    day = date.fromisoformat(iso)
    return f"{day.day} {day:%B %Y}"


@dataclass(frozen=True)
class Usage:
    """The token counts of one answer, as reported by the API."""

    input: int = 0  # without cache reads and writes
    output: int = 0
    cache_read: int = 0
    cache_write: int = 0
    cache_write_hour: int = 0  # of cache_write


def read_usage(body: Any) -> Usage:
    """Return the token counts in a response body. Missing or invalid counts are 0."""
    usage = _get(body, "usage")
    return Usage(
        input=_count(usage, "input_tokens"),
        output=_count(usage, "output_tokens"),
        cache_read=_count(usage, "cache_read_input_tokens"),
        cache_write=_count(usage, "cache_creation_input_tokens"),
        cache_write_hour=_count(_get(usage, "cache_creation"), "ephemeral_1h_input_tokens"),
    )


def _get(value: Any, key: str) -> Any:
    return value.get(key) if isinstance(value, Mapping) else None


def _count(usage: Any, key: str) -> int:
    value = _get(usage, key)
    return value if type(value) is int and value > 0 else 0


def cost_usd(model: Model, usage: Usage, *, batch: bool = False) -> float:
    """Return the cost of one answer in USD."""
    short_write = max(0, usage.cache_write - usage.cache_write_hour)
    total = (
        usage.input * model.input
        + usage.output * model.output
        + usage.cache_read * model.cache_read
        + short_write * model.cache_write
        + usage.cache_write_hour * model.input * HOUR_WRITE
    )
    return total * (BATCH if batch else 1) / MTOK
