"""Limits on what a language model is asked: tokens, money, requests per minute."""

from __future__ import annotations

import threading
from collections.abc import Callable

from workers.writing.provider import SpendingLimitError

PER = 1e6  # tokens that a price is for


class Spending:
    """Counts tokens and money, and refuses a request that could exceed the limit. Safe for several threads.

    Requests that wait for their answer count with the most they may cost, so that parallel ones do not pass the limit
    together. Only a server that reads more tokens than estimated can exceed it, by that much.

    Args:
        most_tokens: of prompts and answers together; None = no limit.
        most_cost: None = no limit.
        price_read, price_written: of a million tokens.
    """

    def __init__(
        self, most_tokens: int | None = None, most_cost: float | None = None, price_read: float = 0.0,
        price_written: float = 0.0,
    ) -> None:
        self._most_tokens, self._most_cost = most_tokens, most_cost
        self._price = price_read, price_written
        self._lock = threading.Lock()
        self._waiting_tokens, self._waiting_cost = 0, 0.0
        self.tokens, self.spent = 0, 0.0

    def cost(self, read: float, written: float) -> float:
        """Return what so many tokens cost."""
        return (read * self._price[0] + written * self._price[1]) / PER

    def reserve(self, read: int, written: int) -> None:
        """Count a request before it is sent, with its largest answer.

        Raises:
            SpendingLimitError: it could exceed a limit.
        """
        cost = self.cost(read, written)
        with self._lock:
            tokens = self.tokens + self._waiting_tokens + read + written
            if self._most_tokens is not None and tokens > self._most_tokens:
                raise SpendingLimitError(
                    f"stopped at the spending limit: {self.tokens:,} tokens of at most {self._most_tokens:,} "
                    "(FRESHET_WRITER_MOST_TOKENS); run again with a higher limit to go on")
            money = self.spent + self._waiting_cost + cost
            if self._most_cost is not None and money > self._most_cost:
                raise SpendingLimitError(
                    f"stopped at the spending limit: {self.spent:.2f} of at most {self._most_cost:.2f} "
                    "(FRESHET_WRITER_MOST_COST); run again with a higher limit to go on")
            self._waiting_tokens += read + written
            self._waiting_cost += cost

    def settle(self, read: int, written: int, used_read: int = 0, used_written: int = 0) -> float:
        """Replace a reservation by what was used, nothing for a request without an answer; return the cost."""
        cost = self.cost(used_read, used_written)
        with self._lock:
            self._waiting_tokens -= read + written
            self._waiting_cost -= self.cost(read, written)
            self.tokens += used_read + used_written
            self.spent += cost
        return cost


class Pace:
    """Spaces requests evenly, and holds all of them when the server asks to wait. Safe for several threads.

    Args:
        per_minute: requests; 0 = no limit.
        clock: seconds, monotonic.
    """

    def __init__(self, per_minute: float, clock: Callable[[], float]) -> None:
        self._gap = 60.0 / per_minute if per_minute else 0.0
        self._clock = clock
        self._next = 0.0
        self._lock = threading.Lock()

    def wait(self) -> float:
        """Return the seconds to wait before the next request, which then has its turn."""
        with self._lock:
            now = self._clock()
            turn = max(now, self._next)
            self._next = turn + self._gap
        return turn - now

    def hold(self, seconds: float) -> None:
        """Let no request start for so long."""
        with self._lock:
            self._next = max(self._next, self._clock() + seconds)
