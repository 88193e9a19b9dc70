"""Replay and the live stack make the same decisions: both get the same events, and every decision is compared.

The live roles run concurrently, so a judgement and new knowledge for the same user race. In replay the judgement comes
first. For the same order, the live stack gets one event at a time, and the knowledge role is paused (SIGSTOP) until the
event's judgement is in the user's state.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest

from schemas.artifacts import Registry
from schemas.events import make_event_id
from schemas.messages import Judgement
from schemas.settings import KafkaSettings, RefreshSettings, Settings, to_environ
from streams.decisions.planner import Plan, Planner
from streams.profile.catalogue import ItemVectors
from streams.profile.fold import Event
from streams.profile.state import UserState, loads
from tests.system.stack import CHANGELOG, Stack
from tests.workers.fitted import ITEMS, publish, settings_in
from workers.kafka.reader import TopicReader
from workers.replay.play import Replay
from workers.roles.knowledge.generator import LlmGenerator
from workers.roles.ranking.ranker import Ranker

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]
EVENTS, USERS, BASE = 72, 4, 1_700_000_000
ASKED, JUDGED, RANK, OFFERED = "knowledge-requests", "judgements", "ranking-requests", "recommendations"


def made_up() -> list[Event]:
    """Return events of users who change their taste every nine events; the random model is often wrong."""
    rng = random.Random(11)
    events = []
    for n in range(EVENTS):
        user, turn = rng.randrange(USERS), n // (9 * USERS)
        item, time = rng.choice(ITEMS[10 * ((user + turn) % 3):][:10]), BASE + 60.0 * n
        events.append(Event(f"u{user}", item, time, "interaction",
                            make_event_id(f"u{user}", item, time, "interaction"), n, time))
    return events


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    settings = settings_in(tmp_path / "home")
    publish(settings, "m1")
    # With these thresholds a few dozen events lead to every reason, and the budget refuses some requests.
    refresh = RefreshSettings(drift_threshold=1.5, alpha=0.8, cooldown=1, calls_per_1000=200)
    return replace(settings, refresh=refresh, kafka=KafkaSettings(partitions=1))  # one partition: one price


class Offline:
    """The replay, one event at a time, and its decisions."""

    def __init__(self, settings: Settings) -> None:
        artifact = Registry(settings.home).open()
        planner = Planner(ItemVectors.load(artifact), artifact.calibration(), settings, artifact.model_version)
        self.requests: list[dict[str, Any]] = []
        self.judgements: list[Judgement] = []
        self.rankings = 0
        self.replay = Replay(
            planner, Ranker.load(settings), LlmGenerator.load(settings, artifact), {},
            llm_batch=settings.llm.batch, wave=1, listen=self._listen)

    def step(self, event: Event) -> tuple[UserState, int]:
        """Replay an event; return the user's state and the number of ranking requests it caused."""
        before = self.rankings
        self.replay.play([event])
        return self.replay.states[event.user_id], self.rankings - before

    def _listen(self, plan: Plan, judgements: Sequence[Judgement]) -> None:
        self.rankings += len(plan.ranking)
        self.requests.extend(request.model_dump() for request in plan.knowledge)
        self.judgements.extend(judgements)


class Live:
    """The live stack, observed through its topics."""

    def __init__(self, stack: Stack, reader: TopicReader) -> None:
        self.stack = stack
        self.seen: dict[str, list[Any]] = {topic: [] for topic in (ASKED, JUDGED, RANK, OFFERED, CHANGELOG)}
        self._reader = reader

    def look(self) -> None:
        for message in self._reader.poll(0.02):
            value = message.value()
            if message.topic() != CHANGELOG:
                self.seen[message.topic()].append(orjson.loads(value))
            elif value:
                self.seen[CHANGELOG].append((message.key().decode(), loads(value)))

    def state(self, user: str) -> UserState:
        return next((state for name, state in reversed(self.seen[CHANGELOG]) if name == user), UserState())

    def until(self, event: Event, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 20
        while not condition():
            self.look()
            assert time.monotonic() < deadline, (
                f"event {event.offset} of {event.user_id}\n{self.state(event.user_id)}\n{self.stack.log_tails()}")

    def judged(self, event: Event, expected: UserState) -> bool:
        state = self.state(event.user_id)
        return (state.count, state.judged_count) == (expected.count, expected.judged_count)

    def settled(self, event: Event, expected: UserState, asked_before: int, rankings: int) -> bool:
        """Return whether all effects of the event are done: its state, and the answer to its last ranking request."""
        state = self.state(event.user_id)
        if (state.knowledge_version, state.pending) != (expected.knowledge_version, None):
            return False
        asked = self.seen[RANK][asked_before:]
        return len(asked) >= rankings and any(
            offer["requested_at"] == asked[-1]["requested_at"] for offer in reversed(self.seen[OFFERED]))


@contextmanager
def paused(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_replay_and_the_live_stack_make_the_same_decisions(settings: Settings) -> None:
    offline = Offline(settings)
    environ = {name: value for name, value in to_environ(settings).items() if name != "FRESHET_HOME"}
    with Stack(settings.home, **environ) as stack, TopicReader(
            stack.kafka, [ASKED, JUDGED, RANK, OFFERED, CHANGELOG]) as reader:
        live = Live(stack, reader)
        assert stack.running is not None
        for event in made_up():
            asked_before = len(live.seen[RANK])
            with paused(stack.running.pids["knowledge"]):
                expected, rankings = offline.step(event)
                stack.produce([{"user_id": event.user_id, "item_id": event.item_id, "event_time": event.event_time}])
                live.until(event, partial(live.judged, event, expected))
            live.until(event, partial(live.settled, event, expected, asked_before, rankings))
        states = stack.states()

    decided = [_decision(request) for request in live.seen[ASKED]]
    assert decided == [_decision(request) for request in offline.requests]
    assert {request["reason"] for request in offline.requests} == {"cold_start", "drift", "contradiction", "stale"}
    margins = [_margins(judgement) for judgement in live.seen[JUDGED]]
    assert len(margins) == len(offline.judgements) > EVENTS // 2
    for live_margins, judgement in zip(margins, offline.judgements, strict=True):
        offline_margins = _margins(judgement.model_dump())
        assert live_margins.keys() == offline_margins.keys()
        assert list(live_margins.values()) == pytest.approx(list(offline_margins.values()), abs=1e-3)
    for user, state in offline.replay.states.items():
        live_state = states[user]
        assert (live_state.items, live_state.count, live_state.knowledge_version, live_state.knowledge_count,
                live_state.judged_count) == (
            state.items, state.count, state.knowledge_version, state.knowledge_count, state.judged_count)
        assert (live_state.contradicted_at, live_state.last_refresh_count) == (
            state.contradicted_at, state.last_refresh_count)
        assert (live_state.trust, live_state.standing) == pytest.approx((state.trust, state.standing), abs=1e-3)
        assert live_state.cusum == pytest.approx(state.cusum, abs=1e-6)
    offers = {offer["user_id"]: offer for offer in live.seen[OFFERED]}
    for user, offer in offline.replay.record.offers.items():
        assert offers[user]["reference"] == list(offer.reference)[:len(offers[user]["reference"])]
        assert (offers[user]["source"] == "fused") == offer.fused


def _decision(request: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(request[name] for name in (
        "user_id", "version", "reason", "count", "history", "event_id", "event_time"))


def _margins(judgement: dict[str, Any]) -> dict[tuple[Any, ...], float]:
    return {(judgement["user_id"], m["event_id"], m["count"], m["knowledge_version"]): m["value"]
            for m in judgement["margins"]}
