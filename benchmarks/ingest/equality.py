"""Check that every system did the complete job: compare states of sampled users with the shared fold."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson

from benchmarks.ingest import fold
from benchmarks.ingest.events import Record
from benchmarks.ingest.meter import plain

TOLERANCE = 1e-4


def expected(records: list[Record], sample: list[str], world: fold.ItemIndex) -> dict[str, list[dict[str, Any]]]:
    """Return, per sampled user, the state after each of their records."""
    wanted = frozenset(sample)
    states: dict[str, fold.State] = {user: fold.State() for user in sample}
    out: dict[str, list[dict[str, Any]]] = {user: [] for user in sample}
    for user, value in records:
        if user in wanted:
            event = orjson.loads(value)
            fold.apply(states[user], event["item_id"], event["event_time"], event["event_id"], world)
            out[user].append(plain(states[user]))
    return out


def differences(
    states: dict[str, dict[str, Any]], truth: dict[str, list[dict[str, Any]]], *, complete: bool,
) -> list[str]:
    """Return the differences of a system's states, one line each; empty = equal.

    Args:
        complete: the system processed all events. Otherwise a state is compared with the truth after the same number of
            records.
    """
    wrong = []
    for user, path in truth.items():
        if not path:
            continue
        got = states.get(user)
        if got is None:
            if complete:
                wrong.append(f"{user}: no state")
            continue
        done = got["count"] + got["duplicates"] + got["too_late"]
        if done > len(path) or done == 0 or (complete and done != len(path)):
            wrong.append(f"{user}: {done} of {len(path)} records")
            continue
        want = path[done - 1]
        wrong += [f"{user}: {key} differs" for key in ("count", "items", "times") if got[key] != want[key]]
        for key in ("interest", "drift"):
            if not np.allclose(_numbers(got[key]), _numbers(want[key]), rtol=TOLERANCE, atol=TOLERANCE):
                wrong.append(f"{user}: {key} differs by more than {TOLERANCE}")
    return wrong


def _numbers(value: str | list[float]) -> np.ndarray:
    return np.frombuffer(bytes.fromhex(value), dtype="<f4") if isinstance(value, str) else np.array(value)
