"""A session of instaloader that is in no hurry, keeps to a budget of minutes, and tells refusals in a line."""

import io
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from typing import TypeVar

import instaloader

from helpers.config import ScrapeConfig
from helpers.core.errors import RunError
from helpers.scrape.instagram.login import cookies
from helpers.scrape.instagram.refusals import UPGRADE, explain, explain_post, is_vanished
from helpers.scrape.items import Stopped

Answer = TypeVar("Answer")
REQUEST_TIMEOUT_S = 60.0
TOLD_FROM_S = 15.0  # shorter pauses are not worth a line
POSTS_IN_A_ROW = 3  # that cannot be had: then it is not the posts


class Vanished(Stopped):
    """There is no account of that name, or not any more."""


class Budget:
    """The minutes that a walk may take."""

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
        """Raises Stopped when it is spent."""
        if self.left_s <= 0:
            raise Stopped(f"max_minutes={self.minutes:g} is spent: run 01_scrape again to go on")

    def __str__(self) -> str:
        return f"{max(0.0, self.left_s) / 60:.0f} min left" if self.minutes else "no time limit"


class Patience(instaloader.RateController):
    """instaloader's pace, told in a line where one has to wait, and never beyond the budget."""

    def __init__(
        self,
        context: instaloader.InstaloaderContext,
        budget: Budget,
        before_query: Callable[[], None],
    ) -> None:
        super().__init__(context)
        self.budget, self.before_query = budget, before_query

    def wait_before_query(self, query_type: str) -> None:
        """Called before each question to Instagram: what the last one brought is kept first."""
        self.before_query()
        self.budget.check()
        super().wait_before_query(query_type)

    def sleep(self, secs: float) -> None:
        """Raises Stopped where the pause is longer than the budget."""
        if secs > self.budget.left_s:
            raise Stopped(
                f"Instagram's pace asks for a pause of {secs / 60:.0f} minutes and max_minutes="
                f"{self.budget.minutes:g} ends before: run 01_scrape again after it"
            )
        if secs >= TOLD_FROM_S:
            print(f"a pause of {secs / 60:.1f} minutes, to keep to Instagram's pace", flush=True)
        super().sleep(secs)


class Session:
    """Questions to Instagram. What instaloader prints is not shown; what it raises is told by Stopped."""

    def __init__(self, config: ScrapeConfig, before_query: Callable[[], None]) -> None:
        """Logged in where there are cookies. Raises RunError for unusable ones."""
        self.account = config.username or "this account"
        self.budget = Budget(config.max_minutes)
        self.lost = 0  # posts in a row
        loader = instaloader.Instaloader(
            sleep=config.pauses,
            quiet=True,
            iphone_support=False,  # one more request a picture, for pixels that training has no use for
            max_connection_attempts=1,  # a refusal is told, not asked for again
            request_timeout=REQUEST_TIMEOUT_S,
            rate_controller=lambda context: Patience(context, self.budget, before_query),
        )
        if found := cookies():
            loader.load_session(found["ds_user_id"], found)
        self.context = loader.context

    @property
    def is_logged_in(self) -> bool:
        return self.context.is_logged_in

    def ask(self, question: Callable[[], Answer]) -> Answer:
        """instaloader's answer. Raises Stopped for whatever it raises, Vanished where the account is not there."""
        try:
            with redirect_stderr(io.StringIO()):
                return question()
        except (Stopped, RunError):
            raise
        except Exception as error:
            kind = Vanished if is_vanished(error) else Stopped
            raise kind(explain(error, self.account, self.is_logged_in)) from None

    def ask_post(
        self, question: Callable[[], Answer], is_its_own: Callable[[], bool] = lambda: True
    ) -> Answer | str:
        """A post, or the words why this one cannot be had.

        Raises Stopped where that befalls several in a row, or, as `is_its_own` tells, is not the post's own fault.
        """
        try:
            with redirect_stderr(io.StringIO()):
                answer = question()
        except (Stopped, RunError):
            raise
        except Exception as error:
            why = explain_post(error) if is_its_own() else None
            if why is None:
                raise Stopped(explain(error, self.account, self.is_logged_in)) from None
            return self._lose(why)
        self.lost = 0
        return answer

    def _lose(self, why: str) -> str:
        self.lost += 1
        if self.lost >= POSTS_IN_A_ROW:
            raise Stopped(
                f"{self.lost} posts in a row could not be had (the last {why}): {UPGRADE}, then run 01_scrape again"
            )
        return why
