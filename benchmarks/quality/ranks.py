"""The ranks behind the figures of `benchmarks.quality.run`, stored in the repository.

The interval of a difference needs both systems' rank of every event. With stored ranks, tables can combine runs of
different days and machines, and intervals can be checked without training.

`benchmarks/results/quality-ranks/<dataset>-<protocol>.npz` contains, for each number n of predicted events, `row,n` and
`user,n` (rows and users of these events), and for each run `system,control,seed,n`: ranks (n,), 0 = first, clipped to
255. All figures use only the first ten ranks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from models.data.dataset import IntArray
from models.measuring.intervals import paired_interval
from models.measuring.metrics import ndcg
from schemas.errors import DataError
from schemas.files import written_whole

CLIP = 255
Name = tuple[str, str | None]  # system and control


class Difference(NamedTuple):
    """A mean difference, the bounds of its 95% interval (bootstrap over users), and the number of seeds."""

    mean: float
    low: float
    high: float
    seeds: int

    def reversed(self) -> Difference:
        """Return the difference with the opposite sign."""
        return Difference(-self.mean, -self.high, -self.low, self.seeds)


class RankBook:
    """Ranks of runs on one data set under one protocol.

    Args:
        path: path of the file, which need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._columns: dict[str, np.ndarray] = {}
        if path.is_file():
            with np.load(path, allow_pickle=False) as columns:
                self._columns = {name: columns[name] for name in columns.files}

    def add(self, run: dict[str, Any], row: IntArray, user: IntArray, rank: IntArray) -> None:
        """Add or replace a run's ranks (n,) and write the file.

        Args:
            run: an entry of quality.json.
            row, user: (n,) rows and users of the predicted events; the same for every run with n events.

        Raises:
            DataError: the file has n other events.
        """
        n = len(row)
        events = {f"row,{n}": np.asarray(row, np.uint32), f"user,{n}": np.asarray(user, np.uint32)}
        for name, values in events.items():
            if name in self._columns and not np.array_equal(self._columns[name], values):
                raise DataError(f"{self.path} has ranks of {n} other events; the data has changed: remove the file")
        self._columns |= events | {_key((run["system"], run["control"]), run["seed"], n):
                                 np.minimum(rank, CLIP).astype(np.uint8)}
        with written_whole(self.path) as scratch, scratch.open("wb") as file:
            np.savez_compressed(file, **self._columns)  # type: ignore[arg-type]

    def events(self, name: Name, seed: int) -> int:
        """Return the largest number of events a run predicted, 0 = the run is not stored."""
        sizes = [int(key.partition(",")[2]) for key in self._columns if key.startswith("row,")]
        return max((n for n in sizes if _key(name, seed, n) in self._columns), default=0)

    def above(self, system: Name, baseline: Name, seeds: list[int]) -> Difference | None:
        """Return the lead of one system over another in NDCG@10 on the same events, averaged over the seeds with ranks
        of both; None if there is none. If runs have different sizes, use the size that most seeds have.
        """
        common = {seed: n for seed in seeds if (n := self._common(system, baseline, seed))}
        if not common:
            return None
        sizes = list(common.values())
        n = max(sizes, key=lambda size: (sizes.count(size), size))
        gains = [ndcg(self._columns[_key(system, seed, n)].astype(np.int64))
                 - ndcg(self._columns[_key(baseline, seed, n)].astype(np.int64))
                 for seed, size in common.items() if size == n]
        mean, user = np.mean(gains, axis=0), self._columns[f"user,{n}"]
        return Difference(*paired_interval(user, mean), len(gains))

    def _common(self, first: Name, second: Name, seed: int) -> int:
        """Return the largest number of events for which both runs are stored, 0 = none."""
        sizes = [int(key.partition(",")[2]) for key in self._columns if key.startswith("row,")]
        stored = [n for n in sizes if all(_key(name, seed, n) in self._columns for name in (first, second))]
        return max(stored, default=0)


def _key(name: Name, seed: int, n: int) -> str:
    return f"{name[0]},{name[1] or ''},{seed},{n}"
