"""Chooses the contradicted and the untouched users for training an adapter and for judging it. Pure.

A contradicted user is one whose events contradicted their knowledge. An untouched user has knowledge at full trust.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from models.aligning.align import Groups
from models.aligning.cohort import Cohort, cohort_of, newest
from models.scorers.snapshots import SPAN
from schemas.messages import AlignmentSample, RankingRequest

MIN_HISTORY = 4  # known items; the older half predicts the newer half
MIN_LATER_EVENTS = 3  # events after a contradiction that suffice to judge a held-out user


@dataclass(frozen=True, slots=True)
class TrainingItems:
    """The items that the models know, and how many items of a history they read.

    Args:
        rows: item id → row.
        max_len: number of items read.
    """

    rows: Mapping[str, int]
    max_len: int

    def known(self, items: Sequence[str]) -> list[int]:
        """Return the rows of the newest known items, oldest first: at most `max_len` to read and `SPAN` to judge."""
        # Read from the end: a hostile history may be very long.
        newest_first = (self.rows[item] for item in reversed(items) if item in self.rows)
        out = [row for row, _ in zip(newest_first, range(self.max_len + SPAN), strict=False)]
        return out[::-1]


def untouched_users(requests: Sequence[RankingRequest], contradicted: set[str], most: int) -> dict[str, list[str]]:
    """Return the newest histories of up to `most` users who have knowledge at full trust and were not contradicted."""
    out: dict[str, list[str]] = {}
    for user, request in newest_by_user(requests).items():
        if len(out) == most:
            break
        if user not in contradicted and request.knowledge_version > 0 and request.trust == 1.0:
            out[user] = request.history
    return out


def newest_by_user(requests: Sequence[RankingRequest]) -> dict[str, RankingRequest]:
    """Return each user's request with the highest count, the last one of equals."""
    out: dict[str, RankingRequest] = {}
    for request in requests:
        held = out.get(request.user_id)
        if held is None or request.count >= held.count:
            out[request.user_id] = request
    return out


def choose_groups(
    samples: Sequence[AlignmentSample], requests: Sequence[RankingRequest], catalogue: TrainingItems, held_out: float,
    seed: int = 0,
) -> Groups:
    """Return the users to train on and the users to judge with, split by user.

    For training, a contradicted user's history ends with the contradiction. Knowledge generated from its older half is
    judged on its newer half (at most `SPAN` events). A held-out user is judged on the events *after* the contradiction
    if there are at least `MIN_LATER_EVENTS`. The events that revealed the contradiction were selected for being bad, so
    any change would look like an improvement on them.

    Args:
        samples: the newest sample of each user.
        requests: recent ranking requests of all users.
        held_out: share of users held out for judging.
        seed: of the split.
    """
    latest = newest_by_user(requests)
    contradicted: list[tuple[list[int], int]] = []
    after: list[tuple[list[int], int]] = []
    for sample in sorted(samples, key=lambda sample: sample.user_id):
        history = catalogue.known([*sample.history, sample.item_id])
        if len(history) < MIN_HISTORY or sample.item_id not in catalogue.rows:
            continue
        contradicted.append((history, newest(history, SPAN)))
        request = latest.get(sample.user_id)
        later = _after(catalogue.known(request.history), catalogue.rows[sample.item_id]) if request else None
        after.append(later or contradicted[-1])
    unaffected = untouched_users(requests, {sample.user_id for sample in samples}, len(contradicted))
    known = [history for items in unaffected.values() if len(history := catalogue.known(items)) >= MIN_HISTORY]
    untouched = [(history, newest(history, SPAN)) for history in known]
    train, judge = _split(len(contradicted), held_out, seed)
    train_untouched, judge_untouched = _split(len(untouched), held_out, seed)
    return Groups(
        _cohort([contradicted[row] for row in train]), _cohort([untouched[row] for row in train_untouched]),
        _cohort([after[row] for row in judge]), _cohort([untouched[row] for row in judge_untouched]))


def _after(history: list[int], item: int) -> tuple[list[int], int] | None:
    """Return a history and the place after its last `item`, or None if too few events follow."""
    for place in range(len(history) - 1, -1, -1):
        if history[place] == item:
            return (history, place + 1) if len(history) - place - 1 >= MIN_LATER_EVENTS and place > 0 else None
    return None


def _split(n: int, held_out: float, seed: int) -> tuple[list[int], list[int]]:
    order = np.random.default_rng(seed).permutation(n).tolist()
    cut = round(held_out * n)
    return sorted(order[cut:]), sorted(order[:cut])


def _cohort(snapshots: Sequence[tuple[list[int], int]]) -> Cohort:
    return cohort_of([history for history, _ in snapshots], [first for _, first in snapshots])
