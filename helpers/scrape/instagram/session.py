"""An instaloader session with a rate limit and a time budget, and refusals explained in one line."""

import io
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from typing import TypeVar

import instaloader

from helpers.config import ScrapeConfig
from helpers.core.errors import RunError
from helpers.scrape.instagram.login import cookies
from helpers.scrape.instagram.refusals import UPGRADE, explain, explain_post, is_account_missing
from helpers.scrape.items import SourceStopped

Answer = TypeVar("Answer")
REQUEST_TIMEOUT_S = 60.0
REPORT_PAUSES_FROM_S = 15.0  # shorter pauses are not printed
MAX_FAILED_POSTS = 3  # in a row: then the cause is not the posts


class AccountNotFound(SourceStopped):
    """Raised if Instagram has no account of the given name."""


class TimeBudget:
    """A time limit in minutes on one pass over the posts. 0 means no limit."""

    def __init__(self, minutes: float) -> None:
        self.minutes = minutes
        self.start()

    def start(self) -> None:
        self.began = time.monotonic()

    @property
    def left_s(self) -> float:
        spent = time.monotonic() - self.began
        return self.minutes * 60 - spent if self.minutes else float("inf")

    def check(self) -> None:
        """Raise SourceStopped if the time is used up."""
        if self.left_s <= 0:
            limit = f"max_minutes={self.minutes:g}"
            raise SourceStopped(f"{limit} is used up: run 01_scrape again to go on")

    def __str__(self) -> str:
        return f"{max(0.0, self.left_s) / 60:.0f} min left" if self.minutes else "no time limit"


class RateLimiter(instaloader.RateController):
    """instaloader's rate limiter, which prints long pauses and stops rather than exceed the time budget."""

    def __init__(
        self,
        context: instaloader.InstaloaderContext,
        budget: TimeBudget,
        before_query: Callable[[], None],
    ) -> None:
        super().__init__(context)
        self.budget, self.before_query = budget, before_query

    def wait_before_query(self, query_type: str) -> None:
        """Call `before_query`, check the time budget, then wait as long as the rate limit requires."""
        self.before_query()
        self.budget.check()
        super().wait_before_query(query_type)

    def sleep(self, secs: float) -> None:
        """Pause for `secs` seconds, printing a long pause. Raises SourceStopped if the remaining time is shorter."""
        if secs > self.budget.left_s:
            raise SourceStopped(
                f"Instagram's rate limit needs a pause of {secs / 60:.0f} minutes and max_minutes="
                f"{self.budget.minutes:g} ends before: run 01_scrape again after it"
            )
        if secs >= REPORT_PAUSES_FROM_S:
            print(f"pausing {secs / 60:.1f} minutes, to keep to Instagram's rate limit", flush=True)
        super().sleep(secs)


class Session:
    """An instaloader session that hides instaloader's output and turns its exceptions into SourceStopped."""

    def __init__(self, config: ScrapeConfig, before_query: Callable[[], None]) -> None:
        """Log in with the user's cookies if any, else stay anonymous. Raises RunError if the cookies are unusable."""
        self.account = config.username or "this account"
        self.budget = TimeBudget(config.max_minutes)
        self.failures = 0  # failed posts in a row
        loader = instaloader.Instaloader(
            sleep=config.pauses,
            quiet=True,
            iphone_support=False,  # one more request per image, for pixels that training does not need
            max_connection_attempts=1,  # a refusal is reported, not retried
            request_timeout=REQUEST_TIMEOUT_S,
            rate_controller=lambda context: RateLimiter(context, self.budget, before_query),
        )
        if found := cookies():
            loader.load_session(found["ds_user_id"], found)
        self.context = loader.context

    def request(self, call: Callable[[], Answer]) -> Answer:
        """Return the result of `call`, with any exception of instaloader turned into SourceStopped.

        If the account does not exist, the exception is AccountNotFound.
        """
        try:
            with redirect_stderr(io.StringIO()):
                return call()
        except (SourceStopped, RunError):
            raise
        except Exception as error:
            kind = AccountNotFound if is_account_missing(error) else SourceStopped
            raise kind(explain(error, self.account, self.context.is_logged_in)) from error

    def request_post(
        self, call: Callable[[], Answer], is_post_fault: Callable[[], bool] = lambda: True
    ) -> Answer | str:
        """Return the post that `call` fetches, or the reason if that post alone failed.

        Raises SourceStopped after several failures in a row, or if `is_post_fault` says that the cause is not the post.
        """
        try:
            answer = self.request(call)
        except SourceStopped as stop:
            error = stop.__cause__  # instaloader's exception; None if the time is used up
            why = explain_post(error) if error and is_post_fault() else None
            if why is None:
                raise
            self.failures += 1
            if self.failures >= MAX_FAILED_POSTS:
                raise SourceStopped(
                    f"{self.failures} posts in a row failed (the last {why}): {UPGRADE}, "
                    "then run 01_scrape again"
                ) from None
            return why
        self.failures = 0
        return answer
