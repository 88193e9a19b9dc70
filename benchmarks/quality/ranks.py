"""The ranks behind the figures of `benchmarks.quality.run`, stored in the repository.

The interval of a difference needs both systems' rank of every event. With stored ranks, tables can combine runs of
different days and machines, and intervals can be checked without training.

`benchmarks/results/quality-ranks/<dataset>-<protocol>-<ties>.npz` contains, for each seed and number n of predicted
events, `event,seed,n` (places in the file), `user,seed,n` and `flags,seed,n` (1: the item is known from the training
part, 2: a session starts), and for each run `system,control,seed,n`: ranks (n,), 0 = first, clipped to 255. All figures
use only the first ten ranks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from models.data.dataset import BoolArray, IntArray
from models.measuring.intervals import seeds_interval
from models.measuring.metrics import hits_lost, ndcg
from schemas.errors import DataError
from schemas.files import written_whole
from workers.training.evaluate import Predicted

CLIP = 255
KNOWN, START = 1, 2  # flags
PARTS = ("all", "known", "unseen", "start", "within")
Name = tuple[str, str | None]  # system and control


class Difference(NamedTuple):
    """A mean difference, the bounds of its 95% interval (over users, and over training with several seeds), and the
    number of seeds.
    """

    mean: float
    low: float
    high: float
    seeds: int

    def reversed(self) -> Difference:
        """Return the difference with the opposite sign."""
        return Difference(-self.mean, -self.high, -self.low, self.seeds)


class Pair(NamedTuple):
    """Two runs' ranks (m,) of the same events with one seed, and their users (m,)."""

    user: IntArray
    first: IntArray
    second: IntArray


class RankBook:
    """Ranks of runs on one data set under one protocol and order of ties.

    Args:
        path: path of the file, which need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._columns: dict[str, np.ndarray] = {}
        if path.is_file():
            with np.load(path, allow_pickle=False) as columns:
                self._columns = {name: columns[name] for name in columns.files}

    def add(self, run: dict[str, Any], events: Predicted, rank: IntArray) -> None:
        """Add or replace a run's ranks (n,) and write the file.

        Args:
            run: an entry of quality.json.
            events: the predicted events; the same for every run with n events and this seed.

        Raises:
            DataError: the file has n other events.
        """
        n, seed = len(rank), run["seed"]
        order = np.argsort(events.event)
        flags = KNOWN * events.known + START * events.start
        about = {"event": events.event[order].astype(np.uint32), "user": events.user[order].astype(np.uint32),
                 "flags": flags[order].astype(np.uint8)}
        for name, values in about.items():
            old = self._columns.get(f"{name},{seed},{n}")
            if old is not None and not np.array_equal(old, values):
                raise DataError(f"{self.path} has ranks of {n} other events; the data has changed: remove the file")
        self._columns |= {f"{name},{seed},{n}": values for name, values in about.items()}
        self._columns[_key((run["system"], run["control"]), seed, n)] = np.minimum(rank, CLIP).astype(np.uint8)[order]
        with written_whole(self.path) as scratch, scratch.open("wb") as file:
            np.savez_compressed(file, **self._columns)  # type: ignore[arg-type]

    def events(self, name: Name, seed: int) -> int:
        """Return the largest number of events a run predicted, 0 = the run is not stored."""
        sizes = [int(key.rpartition(",")[2]) for key in self._columns if key.startswith(f"event,{seed},")]
        return max((n for n in sizes if _key(name, seed, n) in self._columns), default=0)

    def pair(self, first: Name, second: Name, seed: int, part: str = "all") -> Pair | None:
        """Return the ranks of two runs on the events that both predicted; None if one of them is not stored.

        Args:
            part: a name from `PARTS`; the last two are on known items, as all headlines.
        """
        sizes = [self.events(name, seed) for name in (first, second)]
        if not all(sizes):
            return None
        places = np.intersect1d(*(self._columns[f"event,{seed},{n}"] for n in sizes), return_indices=True)[1:]
        ranks = [self._columns[_key(name, seed, n)][at].astype(np.int64)
                 for name, n, at in zip((first, second), sizes, places, strict=True)]
        inside = _inside(self._columns[f"flags,{seed},{sizes[0]}"][places[0]], part)
        user = self._columns[f"user,{seed},{sizes[0]}"][places[0]]
        return Pair(user[inside], ranks[0][inside], ranks[1][inside])

    def above(self, system: Name, baseline: Name, seeds: list[int], part: str = "known") -> Difference | None:
        """Return the lead of one system over another in NDCG@10 on the same events; None without a seed of both."""
        pairs = [pair for seed in seeds if (pair := self.pair(system, baseline, seed, part)) is not None]
        pairs = [pair for pair in pairs if len(pair.user)]
        if not pairs:
            return None
        gains = [ndcg(pair.first) - ndcg(pair.second) for pair in pairs]
        return Difference(*seeds_interval([pair.user for pair in pairs], gains), len(gains))

    def lost(self, system: Name, reference: Name, seeds: list[int], part: str = "known") -> float | None:
        """Return the share of the reference's hits among ten that a system loses, averaged over seeds."""
        pairs = [pair for seed in seeds if (pair := self.pair(system, reference, seed, part)) is not None]
        return float(np.mean([hits_lost(pair.first, pair.second) for pair in pairs])) if pairs else None


def _inside(flags: np.ndarray, part: str) -> BoolArray:
    known, start = flags & KNOWN > 0, flags & START > 0
    return {"all": known | True, "known": known, "unseen": ~known, "start": known & start,
            "within": known & ~start}[part]


def _key(name: Name, seed: int, n: int) -> str:
    return f"{name[0]},{name[1] or ''},{seed},{n}"
