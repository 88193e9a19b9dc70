"""From messages to lessons: who the language model is taught with, and who judges what it learnt. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from models.aligning.align import Groups
from models.aligning.cohort import Cohort, cohort_of, newest
from models.scorers.snapshots import SPAN
from schemas.messages import AlignmentSample, RankingRequest

SHORTEST = 4  # known items of a history: half of them are judged by the other half
LATER = 3  # events after the contradiction from which on these alone judge a held-out user


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Which items the models know, and how many of a history are read."""

    rows: Mapping[str, int]
    max_len: int

    def known(self, items: Sequence[str]) -> list[int]:
        """Return the rows of the newest known items, as many as are read and judged, oldest first."""
        # From the end: a hostile history may be long.
        newest_first = (self.rows[item] for item in reversed(items) if item in self.rows)
        out = [row for row, _ in zip(newest_first, range(self.max_len + SPAN), strict=False)]
        return out[::-1]


def untouched(requests: Sequence[RankingRequest], contradicted: set[str], most: int) -> dict[str, list[str]]:
    """Return the newest histories of up to `most` users with knowledge that nothing they did speaks against."""
    out: dict[str, list[str]] = {}
    for user, request in newest_by_user(requests).items():
        if len(out) == most:
            break
        if user not in contradicted and request.knowledge_version > 0 and request.trust == 1.0:
            out[user] = request.history
    return out


def newest_by_user(requests: Sequence[RankingRequest]) -> dict[str, RankingRequest]:
    """Return each user's request of the highest count."""
    out: dict[str, RankingRequest] = {}
    for request in requests:
        held = out.get(request.user_id)
        if held is None or request.count >= held.count:
            out[request.user_id] = request
    return out


def groups(
    samples: Sequence[AlignmentSample], requests: Sequence[RankingRequest], catalogue: Catalogue, held_out: float,
    seed: int = 0,
) -> Groups:
    """Return who is trained on and who judges, split by user.

    A contradicted user is trained on with the events up to the contradiction, the newest half of them (at most `SPAN`)
    judged by knowledge from the older half. One held out is judged, where there are `LATER` of them, by what came
    *after* the contradiction: the events that convicted knowledge were picked for being bad, and any change would seem
    an improvement on them.

    Args:
        samples: the newest of each user.
        requests: recent ones of everyone.
    """
    latest = newest_by_user(requests)
    wrong: list[tuple[list[int], int]] = []
    after: list[tuple[list[int], int]] = []
    for sample in sorted(samples, key=lambda sample: sample.user_id):
        history = catalogue.known([*sample.history, sample.item_id])
        if len(history) < SHORTEST or sample.item_id not in catalogue.rows:
            continue
        wrong.append((history, newest(history, SPAN)))
        request = latest.get(sample.user_id)
        later = _after(catalogue.known(request.history), catalogue.rows[sample.item_id]) if request else None
        after.append(later or wrong[-1])
    others = untouched(requests, {sample.user_id for sample in samples}, len(wrong))
    right = [history for items in others.values() if len(history := catalogue.known(items)) >= SHORTEST]
    calm = [(history, newest(history, SPAN)) for history in right]
    train, judge = _split(len(wrong), held_out, seed)
    train_calm, judge_calm = _split(len(calm), held_out, seed)
    return Groups(
        _cohort([wrong[row] for row in train]), _cohort([calm[row] for row in train_calm]),
        _cohort([after[row] for row in judge]), _cohort([calm[row] for row in judge_calm]))


def _after(history: list[int], item: int) -> tuple[list[int], int] | None:
    """Return a history and where what came after its last `item` begins, None where that is too little."""
    for place in range(len(history) - 1, -1, -1):
        if history[place] == item:
            return (history, place + 1) if len(history) - place - 1 >= LATER and place > 0 else None
    return None


def _split(n: int, held_out: float, seed: int) -> tuple[list[int], list[int]]:
    order = np.random.default_rng(seed).permutation(n).tolist()
    cut = round(held_out * n)
    return sorted(order[cut:]), sorted(order[:cut])


def _cohort(snapshots: Sequence[tuple[list[int], int]]) -> Cohort:
    return cohort_of([history for history, _ in snapshots], [first for _, first in snapshots])
