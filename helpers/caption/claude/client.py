"""A session with the Claude API: key, prices, retries and budget, shared by the request threads.

The SDK's own retries are off: they obey a `retry-after` of any length, know no budget, and would send a batch twice.
"""

import math
import threading
from collections.abc import Callable
from contextlib import suppress
from copy import copy
from dataclasses import replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cached_property
from typing import Any, TypeVar

import anthropic
import httpx2
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_after_attempt,
    wait_random_exponential,
)

from helpers.caption.claude.answer import read_answer
from helpers.caption.claude.budget import Budget, ConcurrencyLimiter
from helpers.caption.claude.prices import Usage, cost_usd, find_model, read_usage
from helpers.caption.claude.prompt import Prompt, blank_patch, image_tokens
from helpers.caption.stale import made_with
from helpers.config import CaptionConfig
from helpers.core.errors import RunError
from helpers.core.records import Caption, Post, append_row, caption_costs
from helpers.core.run import Run
from helpers.host.here import secret

Result = TypeVar("Result")
KEY = "ANTHROPIC_API_KEY"
FATAL = {
    401: f"the key in {KEY} is not accepted: make a new one at platform.claude.com",
    402: "the account has no credit: add some at platform.claude.com",
    403: f"the key in {KEY} is not allowed to do this: check its workspace and limits at platform.claude.com",
    404: "there is no such model for this key: choose another model",
}


def _read_key() -> str:
    try:
        return secret(KEY)
    except RunError as error:
        raise RunError(f"{error}; or set captioner to 'sidecar' or 'blip'") from None


class Session:
    """The Claude API client of a run, with prompt, prices and budget. Raises RunError for a missing key or price."""

    def __init__(self, config: CaptionConfig, run: Run) -> None:
        self.config, self.run = config, run
        self.model, self.warning = find_model(config)
        self.prompt = Prompt(config, run, self.model)
        self.made_with = made_with(config, run)
        options = {"max_retries": 0, "timeout": config.timeout_s}
        self.client = anthropic.Anthropic(api_key=_read_key(), **options)
        self.budget = Budget(config.budget_usd, caption_costs(run.captions)[0])
        self.limiter = ConcurrencyLimiter(config.concurrency)
        self._lock = threading.Lock()

    def with_settings_of(self, model: str, made_with: dict[str, str]) -> "Session":
        """Return a session for answers to earlier requests, with the model and settings of those requests."""
        if not model or (model, made_with) == (self.config.model, self.made_with):
            return self
        then = copy(self)
        words = int(made_with.get("max_caption_words", self.config.max_caption_words))
        then.config = replace(self.config, model=model, max_caption_words=words)
        then.made_with = made_with
        with suppress(RunError):  # retired meanwhile
            then.model, _ = find_model(then.config)
        return then

    @cached_property
    def shared_tokens(self) -> int:
        """The number of prompt tokens that all requests share, as counted by the API."""
        params = self.prompt.image_request(blank_patch())
        counted = self.retry(lambda: self.client.messages.count_tokens(**params))
        return max(0, counted.input_tokens - 1)

    def tokens_of(self, post: Post) -> int:
        """Return the number of tokens of an image, at the size at which it is sent to Claude."""
        return image_tokens(post.width_px, post.height_px, self.config.image_side_px)

    def max_cost_usd(self, post: Post, *, batch: bool = False) -> float:
        """Return the highest possible cost of one request for an image, in USD."""
        worst = Usage(
            input=self.tokens_of(post),
            cache_write=self.shared_tokens,
            cache_write_hour=self.shared_tokens,
            output=self.prompt.max_tokens,
        )
        return cost_usd(self.model, worst, batch=batch)

    def save(self, row: Caption) -> Caption:
        """Append a row to captions.jsonl, and return the row."""
        with self._lock:
            append_row(self.run.captions, row)
        return row

    def read_body(self, post: Post, body: Any, request: str = "") -> Caption:
        """Convert a response body to a row of captions.jsonl. For a batch, the request's id is recorded as well."""
        caption, status = read_answer(body, self.config.max_caption_words)
        usage = read_usage(body)
        return self.row(
            post,
            status,
            caption,
            request=request,
            input_tokens=usage.input,
            output_tokens=usage.output,
            cache_read_tokens=usage.cache_read,
            cache_write_tokens=usage.cache_write,
            cost_usd=cost_usd(self.model, usage, batch=bool(request)),
        )

    def row(self, post: Post, status: str, caption: str = "", **more: Any) -> Caption:
        """Return a row of captions.jsonl for an image, with further fields if given."""
        by = {"captioner": "claude", "model": self.config.model, "made_with": self.made_with}
        return Caption(post.file_name, caption, status, **by, **more)

    def over_budget(self, count: int) -> RunError:
        """Return a RunError that says that the budget does not cover the next image, and how many images are left."""
        return RunError(
            f"Stopping: the next request could exceed budget_usd=${self.budget.budget_usd:.2f} "
            f"(${self.budget.spent_usd:.2f} spent, {count} images left). Raise budget_usd and run this again; "
            "answers so far are saved"
        )

    def retry(self, call: Callable[[], Result], *, paid: bool = False) -> Result:
        """Call a function, with up to `most_retries` retries after overload, server errors or network errors.

        A paid call that was sent and not answered is not retried; the caller counts its cost. Raises RunError, or for a
        paid call the API's own error if it concerns this image only.
        """
        retrying = Retrying(
            stop=stop_after_attempt(1 + self.config.most_retries),
            retry=retry_if_exception(
                lambda error: _is_transient(error) and not (paid and may_be_billed(error))
            ),
            wait=self._wait,
            before_sleep=self._before_sleep,
            reraise=True,
        )
        try:
            return retrying(call)
        except (anthropic.APIError, httpx2.TransportError, ValueError) as error:
            status = getattr(error, "status_code", 0)
            if status in FATAL:
                raise RunError(f"Claude: {FATAL[status]} ({error_line(error)})") from error
            if paid:
                raise
            why = f"Claude failed to answer ({error_line(error)})"
            raise RunError(f"{why}: run this again later, nothing is lost") from error

    def _wait(self, state: RetryCallState) -> float:
        asked = retry_after_s(state.outcome.exception())
        longest = self.config.longest_wait_s
        if asked is None:
            return wait_random_exponential(self.config.retry_wait_s, longest)(state)
        if asked > max(longest, 1.0):
            minutes = f"Claude asks to wait {asked / 60:.0f} minutes"
            raise RunError(f"{minutes}: run this again then, nothing is lost")
        return asked

    def _before_sleep(self, state: RetryCallState) -> None:
        if getattr(state.outcome.exception(), "status_code", 0) in (429, 529):
            self.limiter.on_rate_limit()


def may_be_billed(error: BaseException) -> bool:
    """Return True if the server may have billed a request that failed with `error`."""
    if isinstance(error, anthropic.APIConnectionError):
        return type(error.__cause__).__name__ not in ("ConnectError", "ConnectTimeout")
    return isinstance(error, ValueError)


def _is_transient(error: BaseException) -> bool:
    if isinstance(error, anthropic.APIStatusError):
        return error.status_code in (408, 409, 429) or error.status_code >= 500
    return isinstance(error, anthropic.APIConnectionError | httpx2.TransportError | ValueError)


def error_line(error: Exception) -> str:
    """Return an API error as one line of text."""
    if isinstance(error, anthropic.APIStatusError):
        text = f"{error.status_code} {error.type or 'error'}: {error.api_message or ''}"
    else:
        text = f"{type(error).__name__}: {error}"
    return " ".join(text.split())[:200]


def retry_after_s(error: BaseException | None) -> float | None:
    """Return the seconds in the `retry-after` header of an error's response, or None without a valid header."""
    asked = getattr(getattr(error, "response", None), "headers", {}).get("retry-after", "")
    try:
        seconds = float(asked)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(asked) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None
