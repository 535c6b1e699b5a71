"""How much may be spent, and how many requests may be in flight."""

import threading
from collections.abc import Mapping

ANSWERS_A_REQUEST = 40  # for so many answers a request more in flight: a kill loses 1 in 40 of them


class Purse:
    """Counts what is spent and what requests in flight may come to; never lends beyond the budget."""

    def __init__(self, budget_usd: float, spent_usd: float) -> None:
        self.budget_usd, self.spent_usd, self.reserved_usd = budget_usd, spent_usd, 0.0
        self._lock = threading.Lock()

    @property
    def left_usd(self) -> float:
        return self.budget_usd - self.spent_usd - self.reserved_usd

    def reserve(self, usd: float) -> bool:
        """Set an amount aside; False if the budget has not got it."""
        with self._lock:
            if usd > self.left_usd + 1e-12:
                return False
            self.reserved_usd += usd
            return True

    def settle(self, reserved_usd: float, paid_usd: float) -> None:
        """Give an amount back, and count what it really came to."""
        with self._lock:
            self.reserved_usd -= reserved_usd
            self.spent_usd += paid_usd


class Pace:
    """How many requests may be in flight: one at first, so that the prompt is cached once, then more and more.

    Never more than the rate-limit headers have left, and half as many after a 429 or 529.
    """

    def __init__(self, most: int) -> None:
        self.most, self.answers, self.left = most, 0, most
        self._lock = threading.Lock()

    @property
    def width(self) -> int:
        return max(1, min(self.most, 1 + self.answers // ANSWERS_A_REQUEST, self.left))

    def answered(self, headers: Mapping[str, str], tokens: int) -> None:
        """Count an answer and read what its headers leave: requests, and tokens by `tokens` a request."""
        requests = _number(headers.get("anthropic-ratelimit-requests-remaining"), self.most)
        for kind in ("tokens", "input-tokens"):
            enough = self.most * max(1, tokens)
            left = _number(headers.get(f"anthropic-ratelimit-{kind}-remaining"), enough)
            requests = min(requests, left // max(1, tokens))
        with self._lock:
            self.answers += 1
            self.left = requests

    def refused(self) -> None:
        with self._lock:
            self.answers = max(0, self.width // 2 - 1) * ANSWERS_A_REQUEST


def _number(text: str | None, otherwise: int) -> int:
    return int(text) if text and text.isdigit() else otherwise
