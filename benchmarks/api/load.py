"""An open loop: requests leave at their times, however late earlier answers are.

A closed loop waits for an answer before it asks again, so a server that stands still for a second is asked nothing in
it, and the second is missing from the figures. Here each time is counted from when the request was due.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import quote

import aiohttp

# What services ask for: mostly lists.
MIX = (("recommendations", 70), ("knowledge", 15), ("state", 10), ("item", 5))


@dataclass(frozen=True, slots=True)
class Ask:
    """A request: when it is due, seconds after the start, and for what."""

    at: float
    kind: str
    path: str


@dataclass(slots=True)
class LoadAnswers:
    """Seconds from due to answered by kind, and how many there were by status; 0 = none came."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    status: Counter[int] = field(default_factory=Counter)

    def add(self, kind: str, status: int, seconds: float) -> None:
        self.status[status] += 1
        self.seconds.setdefault(kind, []).append(seconds)


def schedule(rate: float, seconds: float, users: Sequence[str], items: Sequence[str], seed: int = 1) -> list[Ask]:
    """Return requests of independent clients: exponential gaps, users and items drawn by popularity (1/rank)."""
    rng = random.Random(seed)
    kinds, shares = zip(*MIX, strict=True)
    out, at = [], 0.0
    weights = [[1 / (n + 1) for n in range(len(names))] for names in (users, items)]
    while (at := at + rng.expovariate(rate)) < seconds:
        kind = rng.choices(kinds, shares)[0]
        names, weight = (items, weights[1]) if kind == "item" else (users, weights[0])
        name = quote(rng.choices(names, weight)[0], safe="")
        out.append(Ask(at, kind, f"/v1/items/{name}" if kind == "item" else f"/v1/users/{name}/{kind}"))
    return out


async def ask_all(url: str, asks: Sequence[Ask], connections: int = 64) -> LoadAnswers:
    """Send the requests when they are due; every second one with the tag of the last answer, as a careful client."""
    answers, tags = LoadAnswers(), dict[str, str]()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=connections),
                                     timeout=aiohttp.ClientTimeout(total=10)) as session:
        start = time.perf_counter()

        async def one(number: int, ask: Ask) -> None:
            headers = {"If-None-Match": tags[ask.path]} if number % 2 and ask.path in tags else {}
            try:
                async with session.get(url + ask.path, headers=headers) as answer:
                    await answer.read()
                    status = answer.status
                    tags[ask.path] = answer.headers.get("ETag", "")
            except (aiohttp.ClientError, TimeoutError):
                status = 0
            answers.add(ask.kind, status, time.perf_counter() - start - ask.at)

        running = []
        for number, ask in enumerate(asks):
            wait = start + ask.at - time.perf_counter()
            if wait > 0:
                await asyncio.sleep(wait)
            running.append(asyncio.create_task(one(number, ask)))
        await asyncio.gather(*running)
    return answers


def quantile(values: Sequence[float], share: float) -> float:
    """Return a quantile by the nearest rank; values need not be sorted."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
