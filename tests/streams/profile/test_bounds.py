"""The worst ids there are: no state, and no message made from one, outgrows what streams sends and a broker takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from schemas.messages import Judgement, KnowledgeUpdate, Margin
from schemas.settings import RefreshSettings, Settings, StateSettings
from streams.decisions.planner import Plan, Planner
from streams.profile.bounds import EVENT_ID_BYTES, HISTORY_BYTES, SEEN_BYTES, TRIM_EVERY, trim
from streams.profile.catalogue import ItemVectors
from streams.profile.fold import Event
from streams.profile.state import UserState, dumps
from streams.service.app import MAX_BATCH_BYTES
from streams.service.outbox import wire
from tests.streams.cases import CALIBRATION
from workers.runtime.gather_loop import LARGEST

FITS = MAX_BATCH_BYTES - 1_000  # Kafka's own fields and the key come on top
WIDEST = 4096  # of FitSettings.dim
LARGEST_SETTINGS = StateSettings(history=1000, seen=100_000, event_ids=10_000)
ALPHABETS = {"control characters": "\x01\x02", "four bytes": "𝔘𝔙", "quotes": '"\\', "letters": "ab"}


def ids(alphabet: str, start: int = 0) -> Iterator[str]:
    """Distinct ids of 256 characters."""
    for number in range(start, 1 << 30):
        yield "".join(alphabet[int(bit)] for bit in f"{number:032b}") * 8


def events(alphabet: str, number: int, user: str) -> list[Event]:
    names = zip(ids(alphabet), ids(alphabet, 1 << 20), range(number), strict=False)
    return [Event(user, item, float(n), alphabet[0] * 64, event, n, 1.0) for item, event, n in names]


def planner(state: StateSettings, width: int = WIDEST) -> Planner:
    vectors = ItemVectors(["i"], np.ones((1, width), np.float32))
    return Planner(vectors, CALIBRATION, Settings(state=state, refresh=RefreshSettings(min_history=3)), "m" * 512)


def largest(plan: Plan) -> int:
    return max((len(wire(message)) for message in (*plan.ranking, *plan.knowledge)), default=0)


@pytest.mark.parametrize("settings", [StateSettings(), LARGEST_SETTINGS], ids=["default", "largest"])
@pytest.mark.parametrize("alphabet", ALPHABETS.values(), ids=ALPHABETS)
def test_no_state_and_no_request_outgrows_a_message(alphabet: str, settings: StateSettings) -> None:
    plans, states, user = planner(settings), {}, alphabet[0] * 256
    sizes = []
    stream = events(alphabet, 1500, user)
    for start in range(0, 1500, TRIM_EVERY // 2 + 1):  # in step and out of step with the trims
        plan = plans.events(states, stream[start:start + TRIM_EVERY // 2 + 1], 1e9)
        sizes.append((len(dumps(states[user])), largest(plan)))
    assert max(max(pair) for pair in sizes) < FITS
    # All at once: every event of the history is to be judged.
    states = {}
    assert largest(plans.events(states, stream, 1e9)) < FITS
    assert len(dumps(states[user])) < FITS
    judged = Judgement(
        user_id=user, model_version="m" * 512, event_time=1e9, judged_at=1e9, margins=[
            Margin(event_id="e", item_id=alphabet[0] * 256, count=n + 1, value=-9.0, knowledge_version=1)
            for n in range(1500)])
    update = KnowledgeUpdate(
        user_id=user, version=1, model_version=alphabet[0] * 512, reason="drift", count=0, event_time=0.0,
        history_hash="", caused_at=1.0, generated_at=1.0)
    assert largest(plans.updates(states, [(update, 1.0)], 1e9)) < FITS
    contradicted = plans.judgements(states, [judged], 1e9)
    assert contradicted.alignment
    assert max(len(wire(sample)) for sample in contradicted.alignment) < LARGEST
    assert len(dumps(states[user])) < FITS


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=256), min_size=1, max_size=150),
       st.integers(0, 400))
@hypothesis_settings(max_examples=60)
def test_a_trim_keeps_the_newest_that_fit(names: list[str], copies: int) -> None:
    distinct = list(dict.fromkeys(f"{n}{name}"[:256] for n in range(copies // 20 + 1) for name in names))
    state = UserState(
        items=list(distinct), types=["view"] * len(distinct), times=[float(n) for n in range(len(distinct))],
        counts=list(range(len(distinct))), seen=dict.fromkeys(distinct), event_ids=dict.fromkeys(distinct, 1))
    trim(state, LARGEST_SETTINGS)
    kept = len(state.items)
    assert state.items == distinct[len(distinct) - kept:]
    assert (len(state.types), len(state.times), len(state.counts)) == (kept, kept, kept)
    size: Callable[[object], int] = lambda texts: len(orjson.dumps(texts))  # noqa: E731
    assert size(state.items) + size(state.types) <= HISTORY_BYTES + 4
    assert size(list(state.seen)) <= SEEN_BYTES + 2
    assert size(list(state.event_ids)) <= EVENT_ID_BYTES + 2
    if kept < len(distinct):  # the next older one would not have fitted
        assert size(distinct[len(distinct) - kept - 1:]) + size(["view"] * (kept + 1)) > HISTORY_BYTES - 4
        assert set(distinct[:len(distinct) - kept]) <= set(state.seen) or size(distinct) > SEEN_BYTES


@pytest.mark.parametrize("alphabet", ["\x01\x02", "ab"])
def test_a_batch_is_trimmed_as_its_events_one_by_one(alphabet: str) -> None:
    stream = events(alphabet, 700, "u")
    late = [Event("u", name, 0.5, "view", f"late{n}", 700 + n, 1.0) for n, name in
            zip(range(80), ids(alphabet, 1 << 24), strict=False)]
    states: list[UserState] = []
    for size in (780, 1):
        plans, held = planner(LARGEST_SETTINGS, 8), {}
        both = stream + late
        for start in range(0, len(both), size):
            plans.events(held, both[start:start + size], 1e9)
        states.append(held["u"])
    for name in ("items", "times", "types", "counts", "seen", "event_ids", "count", "too_late"):
        assert getattr(states[0], name) == getattr(states[1], name), name


def test_ordinary_ids_are_bounded_by_their_number_alone() -> None:
    plans, states = planner(StateSettings(), 8), {}
    stream = [Event("u", f"{n:036}", float(n), "interaction", f"{n:016}", n, 1.0) for n in range(3000)]
    plans.events(states, stream, 1e9)
    state = states["u"]
    assert (len(state.items), len(state.seen), len(state.event_ids)) == (50, 1000, 128)
