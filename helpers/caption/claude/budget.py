"""Limit the USD spent and the number of concurrent requests."""

import threading
from collections.abc import Mapping

ANSWERS_PER_REQUEST = 40  # answers before one more request in flight: a kill loses 1 in 40 of them


class Budget:
    """A budget in USD, with the amounts spent and reserved."""

    def __init__(self, budget_usd: float, spent_usd: float) -> None:
        self.budget_usd, self.spent_usd, self.reserved_usd = budget_usd, spent_usd, 0.0
        self._lock = threading.Lock()

    def reserve(self, usd: float) -> bool:
        """Reserve `usd` and return True, or return False if less is left."""
        with self._lock:
            if usd > self.budget_usd - self.spent_usd - self.reserved_usd + 1e-12:
                return False
            self.reserved_usd += usd
            return True

    def settle(self, reserved_usd: float, paid_usd: float) -> None:
        """Release a reservation of `reserved_usd`, and add `paid_usd` to the amount spent."""
        with self._lock:
            self.reserved_usd -= reserved_usd
            self.spent_usd += paid_usd


class ConcurrencyLimiter:
    """A limit on concurrent requests: one until the prompt is cached, then gradually more.

    There are never more than the rate-limit headers allow, and half as many after a 429 or 529.
    """

    def __init__(self, max_requests: int) -> None:
        self.max_requests, self.answers, self.remaining = max_requests, 0, max_requests
        self._lock = threading.Lock()

    @property
    def allowed(self) -> int:
        ramp_up = 1 + self.answers // ANSWERS_PER_REQUEST
        return max(1, min(self.max_requests, ramp_up, self.remaining))

    def on_answer(self, headers: Mapping[str, str], tokens: int) -> None:
        """Count an answer, and read from its headers how many more requests of `tokens` tokens are allowed."""
        costs = {"requests": 1, "tokens": max(1, tokens), "input-tokens": max(1, tokens)}
        left = {kind: headers.get(f"anthropic-ratelimit-{kind}-remaining", "") for kind in costs}
        allowed = [int(text) // costs[kind] for kind, text in left.items() if text.isdigit()]
        with self._lock:
            self.answers += 1
            self.remaining = min([self.max_requests, *allowed])

    def on_rate_limit(self) -> None:
        with self._lock:
            self.answers = max(0, self.allowed // 2 - 1) * ANSWERS_PER_REQUEST
