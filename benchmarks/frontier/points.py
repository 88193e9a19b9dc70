"""Points of the frontier: stored when finished, pooled over seeds, compared at equal calls."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from models.measuring.intervals import paired_interval, resampled
from schemas.files import write_whole, written_whole
from workers.replay.record import Columns
from workers.training.code_hash import files_of, hash_of

ROOT = Path(__file__).resolve().parents[2]
# The code that a point depends on, in addition to data, model and settings.
CODE = ("models", "streams", "workers/replay", "workers/roles/ranking/worker.py", "workers/roles/ranking/ranker.py",
        "workers/roles/knowledge/worker.py", "workers/roles/knowledge/generator.py",
        "workers/measurement/prequential.py")
EQUAL = 0.1  # numbers of calls count as equal if they differ by at most this share


def code_hash() -> str:
    """Return a hash of the code that a point depends on; points of other code are not reused."""
    return hash_of(files_of(*CODE))[:12]


@dataclass(frozen=True)
class Point:
    """A finished replay: figures, and (4, n) rows over predicted events: place, user, served and reference NDCG@10."""

    figures: dict[str, Any]
    rows: NDArray[np.float64]

    @property
    def name(self) -> tuple[str, float | None]:
        return self.figures["policy"], self.figures["budget"]


class PointFolder:
    """A folder of points. Each point has two files; the figures are written last."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find(self, key: str) -> Point | None:
        figures, rows = self._folder / f"{key}.json", self._folder / f"{key}.npy"
        if not figures.is_file():
            return None
        return Point(orjson.loads(figures.read_bytes()), np.load(rows, allow_pickle=False))

    def keep(self, key: str, figures: dict[str, Any], columns: Columns) -> Point:
        _, users = np.unique(columns.user, return_inverse=True)
        rows = np.stack([columns.place.astype(float), users.astype(float), columns.served, columns.reference])
        with written_whole(self._folder / f"{key}.npy") as scratch, scratch.open("wb") as file:
            np.save(file, rows)
        write_whole(self._folder / f"{key}.json", orjson.dumps(figures))
        return Point(figures, rows)


def versus(mine: Sequence[Point], theirs: Sequence[Point], draws: int = 2000) -> dict[str, Any]:
    """Compare two policies on the same events: one point of each per seed.

    Returns:
        mean difference in NDCG@10 per event, mine − theirs, its 95% interval (paired bootstrap over users, keeping a
        user's events of all seeds together), and the calls of theirs.
    """
    for a, b in zip(mine, theirs, strict=True):
        if not np.array_equal(a.rows[:2], b.rows[:2]):
            raise ValueError(f"{a.name} and {b.name} predicted different events")
    my_rows, their_rows = (np.concatenate([point.rows for point in points], axis=1) for points in (mine, theirs))
    difference, low, high = paired_interval(my_rows[1].astype(np.int64), my_rows[2] - their_rows[2], draws=draws)
    calls = [float(np.mean([point.figures["calls_per_1000"] for point in points])) for points in (mine, theirs)]
    return {"difference": difference, "interval": [low, high], "calls_per_1000": calls[1],
            "equal_calls": abs(calls[0] / calls[1] - 1) <= EQUAL if min(calls) > 0 else False}


def share_of(mine: Sequence[Point], best: Sequence[Point], draws: int = 2000) -> dict[str, Any]:
    """Return the share of the gain of `best` that `mine` achieves, its 95% interval, and the share of calls used.

    The interval is that of a ratio of two uncertain gains: if the denominator is near 0, it is wide.
    """
    gains, drawn = [], []
    for points in (mine, best):
        rows = np.concatenate([point.rows for point in points], axis=1)
        place, weights = resampled(rows[1].astype(np.int64), draws)
        gains.append(np.bincount(place, rows[2] - rows[3]))
        drawn.append(weights @ gains[-1])
    ratios = np.divide(*drawn, out=np.full(draws, np.nan), where=drawn[1] > 0)
    total = float(gains[1].sum())
    calls = [float(np.mean([point.figures["calls"] for point in points])) for points in (mine, best)]
    return {"share": float(gains[0].sum()) / total if total > 0 else None,
            "interval": [float(x) for x in np.nanpercentile(ratios, (2.5, 97.5))] if total > 0 else None,
            "calls_share": calls[0] / calls[1] if calls[1] else None}


def pooled(points: Sequence[Point]) -> dict[str, Any]:
    """Return the figures of one policy and budget over all seeds: means, and the gain with its interval over users."""
    rows = np.concatenate([point.rows for point in points], axis=1)
    gain, low, high = paired_interval(rows[1].astype(np.int64), rows[2] - rows[3])
    first = points[0].figures

    def mean(name: str) -> float | None:
        values = [point.figures[name] for point in points if point.figures[name] is not None]
        return float(np.mean(values)) if values else None

    return {name: first[name] for name in ("dataset", "policy", "budget")} | {
        "seeds": len(points), "gain": gain, "gain_interval": [low, high]} | {
        name: mean(name) for name in ("calls_per_1000", "ndcg_at_10", "reference_ndcg_at_10", "median_age_s",
                                      "median_age_events", "llm_seconds", "store_bytes_per_user")}


def grouped(points: Iterable[Point]) -> dict[tuple[str, float | None], list[Point]]:
    """Return the points by policy and budget, ordered by seed."""
    groups: dict[tuple[str, float | None], list[Point]] = {}
    for point in sorted(points, key=lambda point: point.figures["seed"]):
        groups.setdefault(point.name, []).append(point)
    return groups
