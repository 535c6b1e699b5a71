"""Limit the USD spent and the number of concurrent requests."""

import threading
from collections.abc import Mapping

ANSWERS_PER_REQUEST = 40  # answers before one more request in flight: a kill loses 1 in 40 of them


class Budget:
    """Tracks spent and reserved USD, and refuses a reservation that the budget does not cover."""

    def __init__(self, budget_usd: float, spent_usd: float) -> None:
        self.budget_usd, self.spent_usd, self.reserved_usd = budget_usd, spent_usd, 0.0
        self._lock = threading.Lock()

    def reserve(self, usd: float) -> bool:
        """Reserve `usd` and return True, or return False if the budget does not cover the amount."""
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
    """Limits the number of concurrent requests: one at first, so that the prompt is cached once, then gradually more.

    Never more than the rate-limit headers allow, and half as many after a 429 or 529.
    """

    def __init__(self, max_requests: int) -> None:
        self.max_requests, self.answers, self.remaining = max_requests, 0, max_requests
        self._lock = threading.Lock()

    @property
    def allowed(self) -> int:
        ramp_up = 1 + self.answers // ANSWERS_PER_REQUEST
        return max(1, min(self.max_requests, ramp_up, self.remaining))

    def on_answer(self, headers: Mapping[str, str], tokens: int) -> None:
        """Count an answer, and note how many more requests of `tokens` tokens the response `headers` allow."""
        requests = _parse_int(
            headers.get("anthropic-ratelimit-requests-remaining"), self.max_requests
        )
        for kind in ("tokens", "input-tokens"):
            enough = self.max_requests * max(1, tokens)
            remaining = _parse_int(headers.get(f"anthropic-ratelimit-{kind}-remaining"), enough)
            requests = min(requests, remaining // max(1, tokens))
        with self._lock:
            self.answers += 1
            self.remaining = requests

    def on_rate_limit(self) -> None:
        with self._lock:
            self.answers = max(0, self.allowed // 2 - 1) * ANSWERS_PER_REQUEST


def _parse_int(text: str | None, default: int) -> int:
    return int(text) if text and text.isdigit() else default
