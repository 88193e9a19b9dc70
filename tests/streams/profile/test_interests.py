"""Interests rebuilt from the history equal those of folding with the other model's vectors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from streams.detection.drift import Detector
from streams.profile.catalogue import ItemVectors
from streams.profile.fold import fold
from streams.profile.interests import rebuild
from streams.profile.state import Pending, UserState
from tests.streams.cases import N_ITEMS, event, item_vectors, settings

OLD = item_vectors()
NEW = ItemVectors(
    [f"i{n}" for n in range(N_ITEMS)], np.random.default_rng(9).normal(size=(N_ITEMS, 5)).astype(np.float32))
LONG = replace(settings().state, history=60)
DETECTOR = Detector(mean=0.4, sd=0.2, prior=5.0, slack=0.2, threshold=3.0)


def vector(data: bytes) -> np.ndarray:
    return np.frombuffer(data, "<f4")


@given(st.lists(st.tuples(st.integers(0, 22), st.sampled_from([0, 0, 0, 1, 3, 30])), min_size=1, max_size=50),
       st.integers(0, 50))
def test_a_rebuilt_state_equals_one_folded_with_the_new_vectors(arrivals: list[tuple[int, int]], asked_at: int) -> None:
    events = [event(n, item=item, time=float(max(0, n - late))) for n, (item, late) in enumerate(arrivals)]
    asked_at = min(asked_at, len(events))
    moved, there = {"u": UserState()}, {"u": UserState()}
    for part in (events[:asked_at], events[asked_at:]):
        for states, vectors in ((moved, OLD), (there, NEW)):
            if part:
                fold(states, {"u": part}, vectors, LONG, DETECTOR)
            if part is not events[asked_at:] and asked_at:
                state = states["u"]
                state.anchor, state.knowledge_count, state.knowledge_version = state.long, state.count, 1
    rebuild(moved["u"], NEW, LONG, "m2")
    for name in ("short", "long", "anchor"):
        mine, theirs = vector(getattr(moved["u"], name)), vector(getattr(there["u"], name))
        assert mine.shape == theirs.shape
        np.testing.assert_allclose(mine, theirs, atol=1e-5)
    assert (moved["u"].drift_n, moved["u"].cusum, moved["u"].drifted) == (0, 0.0, False)
    assert moved["u"].interest_model == "m2"


def test_a_pending_request_gets_an_anchor_in_the_new_space() -> None:
    state = UserState()
    fold({"u": state}, {"u": [event(n) for n in range(8)]}, OLD, LONG, DETECTOR)
    state.pending = Pending(1, "cold_start", state.long, 5, "e4", 4.0, 0.0, 0.0, 1.0)
    rebuild(state, NEW, LONG, "m2")
    there = UserState()
    fold({"u": there}, {"u": [event(n) for n in range(5)]}, NEW, LONG, DETECTOR)
    np.testing.assert_allclose(vector(state.pending.anchor), vector(there.long), atol=1e-6)
    assert state.anchor == b""


def test_a_user_without_a_known_item_has_no_interest() -> None:
    state = UserState()
    fold({"u": state}, {"u": [event(0, item=22)]}, OLD, LONG, DETECTOR)
    rebuild(state, NEW, LONG, "m2")
    assert not vector(state.short).any()
