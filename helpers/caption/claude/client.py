"""One session with the Claude API: its key, prices, patience and purse, shared by the threads that ask.

The SDK's own retries are off: they obey a `retry-after` of any length, know no budget, and would send
a batch twice. Ours wait as long as the server says, within bounds, and count what may have been paid.
"""

import math
import threading
from collections.abc import Callable
from contextlib import suppress
from copy import copy
from dataclasses import replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import anthropic
import httpx2
from PIL import Image
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_after_attempt,
    wait_random_exponential,
)

from helpers.caption.claude.answer import read_answer
from helpers.caption.claude.budget import Pace, Purse
from helpers.caption.claude.prices import Usage, cost_usd, model_of, usage_of
from helpers.caption.claude.prompt import Prompt, blank_patch, image_tokens
from helpers.caption.stale import made_with
from helpers.config import CaptionConfig
from helpers.core.errors import RunError
from helpers.core.records import Caption, Post, append_row, caption_costs
from helpers.core.run import Run
from helpers.host.colab import secret

Result = TypeVar("Result")
KEY = "ANTHROPIC_API_KEY"
UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)  # as Pillow raises
FATAL = {
    401: f"the key in {KEY} is not accepted: make a new one at platform.claude.com",
    402: "the account has no credit: add some at platform.claude.com",
    403: f"the key in {KEY} may not do this: look up its workspace and limits at platform.claude.com",
    404: "there is no such model for this key: choose another model",
}


class Session:
    """What asking about the images of a run takes. Raises RunError for a model without a price, or without a key."""

    def __init__(self, config: CaptionConfig, run: Run) -> None:
        self.config, self.run = config, run
        self.model, self.warning = model_of(config)
        self.prompt = Prompt(config, run, self.model)
        self.made_with = made_with(config, run)
        self.client = anthropic.Anthropic(
            api_key=secret(KEY), max_retries=0, timeout=config.timeout_s
        )
        self.purse = Purse(config.budget_usd, caption_costs(run.captions)[0])
        self.pace = Pace(config.concurrency)
        self._shared_tokens: int | None = None
        self._lock = threading.Lock()

    def as_asked(self, model: str, made_with: dict[str, str]) -> "Session":
        """The same session for answers to what was asked under other settings: their rows say so, at their price."""
        if not model or (model, made_with) == (self.config.model, self.made_with):
            return self
        then = copy(self)
        words = int(made_with.get("max_caption_words", self.config.max_caption_words))
        then.config = replace(self.config, model=model, max_caption_words=words)
        then.made_with = made_with
        with suppress(RunError):  # retired since
            then.model, _ = model_of(then.config)
        return then

    @property
    def shared_tokens(self) -> int:
        """Tokens of all that requests share, by the counting endpoint: of a request about a blank patch, less that."""
        if self._shared_tokens is None:
            params = self.prompt.about(blank_patch())
            counted = self.patiently(lambda: self.client.messages.count_tokens(**params))
            self._shared_tokens = max(0, counted.input_tokens - 1)
        return self._shared_tokens

    def tokens_of(self, post: Post) -> int:
        """Tokens of an image as it is sent."""
        return image_tokens(post.width_px, post.height_px, self.config.image_side_px)

    def most_usd(self, post: Post, *, batch: bool = False) -> float:
        """The most that one answer about this image can cost: nothing cached, all of max_tokens used."""
        worst = Usage(
            input=self.tokens_of(post),
            cache_write=self.shared_tokens,
            cache_write_hour=self.shared_tokens,
            output=self.prompt.max_tokens,
        )
        return cost_usd(self.model, worst, batch=batch)

    def keep(self, row: Caption) -> Caption:
        """Have the disk keep a row."""
        with self._lock:
            append_row(self.run.captions, row)
        return row

    def read(self, post: Post, body: Any, *, batch: bool = False, request: str = "") -> Caption:
        """The row of an answer's body, whichever way it came."""
        caption, status = read_answer(body, self.config.max_caption_words)
        usage = usage_of(body if isinstance(body, dict) else {})
        return replace(
            self._row(post, status, request),
            caption=caption,
            input_tokens=usage.input,
            output_tokens=usage.output,
            cache_read_tokens=usage.cache_read,
            cache_write_tokens=usage.cache_write,
            cost_usd=cost_usd(self.model, usage, batch=batch),
        )

    def failed(self, post: Post, why: str, cost: float = 0.0, request: str = "") -> Caption:
        return replace(self._row(post, f"failed: {why}", request), cost_usd=cost)

    def refused(self, post: Post, request: str = "") -> Caption:
        return self._row(post, "refused", request)

    def _row(self, post: Post, status: str, request: str) -> Caption:
        return Caption(
            post.file_name,
            "",
            status,
            "claude",
            self.config.model,
            request=request,
            made_with=self.made_with,
        )

    def over_budget(self, count: int) -> RunError:
        """What to say when the next request might pass the budget."""
        return RunError(
            f"budget_usd of ${self.purse.budget_usd:.2f} has not got the next request: ${self.purse.spent_usd:.4f} "
            f"is spent and {count} images wait. Raise budget_usd and run this again; what was answered is kept"
        )

    def patiently(self, call: Callable[[], Result], *, paid: bool = False) -> Result:
        """Make a call, again and again while the server is full or falters.

        A paid call that was sent and not answered is not made again: that is for the caller to count. Raises
        RunError where no further call could do better; of a paid call the error itself, if it is this image's.
        """
        again = Retrying(
            stop=stop_after_attempt(1 + self.config.most_retries),
            retry=retry_if_exception(
                lambda error: _may_pass(error) and not (paid and was_sent(error))
            ),
            wait=self._wait,
            before_sleep=self._before_sleep,
            reraise=True,
        )
        try:
            return again(call)
        except (anthropic.APIError, httpx2.TransportError, ValueError) as error:
            status = getattr(error, "status_code", 0)
            if status in FATAL:
                raise RunError(f"Claude: {FATAL[status]} ({why(error)})") from error
            if paid:
                raise
            raise RunError(
                f"Claude did not answer as it should ({why(error)}): run this again later, nothing is lost"
            ) from error

    def _wait(self, state: RetryCallState) -> float:
        """Seconds before the next call: what the server asks for, else random and doubling."""
        asked = retry_after_s(state.outcome.exception())
        longest = self.config.longest_wait_s
        if asked is None:
            return wait_random_exponential(self.config.retry_wait_s, longest)(state)
        if asked > max(longest, 1.0):
            raise RunError(
                f"Claude asks to wait {asked / 60:.0f} minutes: run this again then, nothing is lost"
            )
        return asked

    def _before_sleep(self, state: RetryCallState) -> None:
        if getattr(state.outcome.exception(), "status_code", 0) in (429, 529):
            self.pace.refused()


def was_sent(error: BaseException) -> bool:
    """Whether a request without a whole answer may have been worked on, and so paid for."""
    if isinstance(error, anthropic.APIConnectionError):
        return type(error.__cause__).__name__ not in ("ConnectError", "ConnectTimeout")
    return isinstance(error, ValueError)


def _may_pass(error: BaseException) -> bool:
    """Whether the same request may fare better in a while; a ValueError is an answer that is no JSON."""
    if isinstance(error, anthropic.APIStatusError):
        return error.status_code in (408, 409, 429) or error.status_code >= 500
    return isinstance(error, anthropic.APIConnectionError | httpx2.TransportError | ValueError)


def why(error: Exception) -> str:
    """An error of the API in a line."""
    if isinstance(error, anthropic.APIStatusError):
        text = f"{error.status_code} {error.type or 'error'}: {error.api_message or ''}"
    else:
        text = f"{type(error).__name__}: {error}"
    return " ".join(text.split())[:200]


def retry_after_s(error: BaseException | None) -> float | None:
    """Seconds that the server asks to wait, or None."""
    headers = getattr(getattr(error, "response", None), "headers", {})
    try:
        seconds = float(headers["retry-after"])
    except KeyError:
        return None
    except ValueError:
        seconds = _seconds_until(headers["retry-after"])
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _seconds_until(http_date: str) -> float:
    try:
        return (parsedate_to_datetime(http_date) - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError):
        return math.inf
