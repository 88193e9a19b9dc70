"""Runs the demo: data, fit, stack, backfill, stream, drain, report."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import orjson

from models.data import dataset as data
from models.data.evidence import evidence
from models.data.loading import load_dataset
from schemas.artifacts import Artifact, Registry
from schemas.codec import decode
from schemas.errors import FreshetError, PoisonError, StalledError
from schemas.events import BehaviourEvent
from schemas.messages import DeadLetter, KnowledgeRequest, KnowledgeUpdate, Recommendation
from schemas.settings import Settings
from schemas.topics import (
    BEHAVIOUR_EVENTS,
    DEAD_LETTERS,
    KNOWLEDGE_REQUESTS,
    KNOWLEDGE_UPDATES,
    RECOMMENDATIONS,
    TOPICS,
)
from workers.data import movielens
from workers.data.backfill import fold_past
from workers.data.produce import EventProducer, Pacer
from workers.demo import report, telling
from workers.demo.cost import cost
from workers.demo.inflight import InFlight
from workers.demo.metrics import Metrics
from workers.demo.order import Order
from workers.demo.sampler import Sampler
from workers.demo.screen import Screen, View
from workers.demo.stories import Pulse
from workers.home.lock import run_folder
from workers.kafka.reader import TopicReader, watermarks
from workers.kafka.topics import partitions
from workers.measurement.experiment import RunningExperiment
from workers.supervision.child import bound
from workers.supervision.stack import Stack, role_environ
from workers.writing.describe import describe_recorded

WATCHED = (RECOMMENDATIONS.name, KNOWLEDGE_UPDATES.name, KNOWLEDGE_REQUESTS.name, DEAD_LETTERS.name)
QUIET_S = 1.0  # after the last answer: late knowledge still causes one more recommendation


class Demo:
    """One run of the demo.

    Args:
        folder: a data set; None = MovieLens-100K.
        speed: seconds of event time per second; 0 = as fast as answers arrive.
        events: events to produce after the split; 0 = all.
        window: maximum number of unanswered events; 0 = see `default_window`.
        per_user: maximum number of unanswered events per user; 0 = no limit, see `Order`.
        out: parent folder for the report's folder.
    """

    def __init__(
        self, settings: Settings, folder: Path | None, *, speed: float, events: int, window: int, per_user: int,
        out: Path,
    ) -> None:
        if min(window, per_user, events, speed) < 0:
            raise FreshetError("--window, --per-user, --events and --speed must not be negative")
        # The demo shows how knowledge of users is kept fresh, so it is used even where it does not pay; the report says
        # what it is worth.
        self.settings = replace(settings, home=settings.home.absolute(), fit=replace(settings.fit, parts="on"))
        self.folder = folder
        self.speed = speed
        self.limit = events
        self.window = window  # 0 until the number of events is known
        self.per_user = per_user
        self.out = out
        experiment = settings.experiment
        runs = bool(experiment.name) and experiment.control > 0
        self.metrics = Metrics(trial=RunningExperiment(experiment) if runs else None)
        self.sampler = Sampler()
        self.screen = Screen()
        self.stages: dict[str, float] = {}
        self.view = View("data")
        self._stage_began = time.monotonic()
        self._moved = self._checked = self._sampled = 0.0
        self._stream_began = 0.0
        self._order = Order([], 0)
        self._rows: dict[str, int] = {}
        self._recent: list[tuple[float, int]] = []
        self._described = 0  # items of which something is written
        self._beats: dict[str, list[Pulse]] = {}  # of the users of the stories
        self._counters: dict[str, Any] = {}  # of the knowledge role at the end

    def run(self) -> None:
        """Run the demo and write its report.

        Raises:
            FreshetError: the user can fix what is wrong; the message says how.
            StalledError: a stage made no progress for `watchdog.stall_s`; the message names the stage.
            KeyboardInterrupt: after Ctrl-C or SIGTERM, once everything is stopped and the report is written.
        """
        def _stop(*_: int | FrameType | None) -> None:
            raise KeyboardInterrupt

        signal.signal(signal.SIGTERM, _stop)
        signal.signal(signal.SIGINT, _stop)  # a shell starts background jobs with SIGINT ignored
        began = time.monotonic()
        # Before anything is fitted: roles of a service on this home would follow the new model.
        stack = Stack(self.settings, command="demo", fresh=True, say=self.screen.say)
        stack.hold()
        self.sampler.start()
        artifact: Artifact | None = None
        dataset: data.Dataset | None = None
        problem: BaseException | None = None
        try:
            folder = self.folder or movielens.fetch(self.settings.home, self.screen.say)
            self._begin_stage("load")
            dataset = evidence(load_dataset(folder, self.settings.events), self.settings.events.meaning)
            self._described = describe_recorded(dataset, self.settings.home)
            if self._described:
                self.screen.say(f"{self._described:,} films are described by recorded answers of a language model")
            self._begin_stage("fit")
            artifact = self._fit(folder)
            past, future = data.split(dataset, self.settings.fit.train_fraction)
            future = future[:self.limit] if self.limit else future
            self.window = self.window or default_window(len(future))
            self._stack(stack, dataset, past, future)
        except (FreshetError, KeyboardInterrupt) as error:
            problem = error
        finally:
            self.sampler.stop()
            stack.stop()
        self._begin_stage("report")
        if artifact is not None and dataset is not None and self.metrics.events:
            self._report(artifact, dataset, began, problem)
        if problem is not None:
            raise problem

    def _fit(self, folder: Path) -> Artifact:
        """Fit in a separate process, so that the memory of training is free before the stack starts."""
        command = bound([sys.executable, "-m", "workers.cli", "fit", "--data", str(folder)])
        child = subprocess.Popen(command, env=role_environ(self.settings, "fit", os.environ))
        try:
            code = child.wait()
        except BaseException:
            child.terminate()
            try:
                child.wait(10.0)
            finally:
                child.kill()
            raise
        if code != 0:
            raise FreshetError(f"fitting failed with exit code {code}; see its message above")
        return Registry(self.settings.home).open()

    def _stack(self, stack: Stack, dataset: data.Dataset, past: data.Events, future: data.Events) -> None:
        self._begin_stage("start")
        self.screen.say("starting the stack")
        embedded = not self.settings.kafka.bootstrap
        if not embedded:
            held = watermarks(self.settings.kafka, [BEHAVIOUR_EVENTS.name]).get(BEHAVIOUR_EVENTS.name, [])
            if any(high > 0 for _, high in held):
                raise FreshetError(f"behaviour-events at {self.settings.kafka.bootstrap} is already in use: the demo "
                                   "needs empty topics. Unset FRESHET_KAFKA_BOOTSTRAP to use the embedded broker")
        with ExitStack() as opened:
            opened.enter_context(stack)
            self.sampler.watch(
                stack.settings.kafka, partitions(stack.settings.kafka, list(TOPICS)))
            opened.callback(self.sampler.stop)  # before the broker stops
            self.screen.say(f"broker at {stack.settings.kafka.bootstrap}; "
                            "try `freshet tail recommendations` in another terminal")
            opened.enter_context(self.screen)
            self._begin_stage("backfill", len(past))
            self._backfill(stack, dataset, past)
            reader = opened.enter_context(TopicReader(stack.settings.kafka, WATCHED))
            opened.callback(self._begin_stage, "stop")
            self._begin_stage("stream", len(future))
            self._stream(stack, reader, dataset, past, future)
            self._begin_stage("stories")
            self._counters = telling.counters(self.settings)
            self._beats = telling.recorded(stack.settings.kafka, telling.users_of(self.metrics.diary.turns))

    def _backfill(self, stack: Stack, dataset: data.Dataset, past: data.Events) -> None:
        """Fold the training part into user states, and return when streams has committed all of it."""
        def _left(events: int, moved: bool) -> None:
            if moved:
                self._moved = time.monotonic()
            self._tick(stack, len(past) - events, f"{events:,} past events are not folded yet" if events else "")

        fold_past(stack.settings.kafka, (_event(dataset, past, row) for row in range(len(past))), _left, self._stall_s)

    def _stream(self, stack: Stack, reader: TopicReader, dataset: data.Dataset, past: data.Events,
                future: data.Events) -> None:
        counts = np.bincount(past.user, minlength=len(dataset.users))
        inflight = InFlight({user: int(count) for user, count in zip(dataset.users, counts, strict=True)})
        self._rows = {user: row for row, user in enumerate(dataset.users)}
        producer = EventProducer(stack.settings.kafka, stall_s=self._stall_s)
        self._stream_began = time.monotonic()
        pacer = Pacer(self.speed, self._stream_began)
        order = self._order = Order(future.user.tolist(), self.per_user)
        turns = 0
        while order:
            row = order.peek()
            if row is None or inflight.total >= self.window:
                self._poll(stack, reader, producer, inflight, 0.01)
                continue
            event = _event(dataset, future, row)
            if (wait := pacer.due(event.event_time) - time.monotonic()) > 0:
                self._poll(stack, reader, producer, inflight, min(wait, 0.1))
                continue
            order.take()
            now = time.time()
            self.metrics.produced(event.user_id, event.item_id, inflight.next_count(event.user_id), now)
            if self.metrics.trial is not None:
                self.metrics.trial.add_event(event.user_id, event.item_id, event.event_id, event.event_time)
            if not inflight.total:
                self._moved = time.monotonic()  # nothing was unanswered until now: the stall timeout starts here
            inflight.sent(event.user_id, now)
            producer.send(event, partial(_placed_event, inflight, event.user_id, now))
            turns += 1
            if turns % 8 == 0:
                self._poll(stack, reader, producer, inflight, 0.0)
        self._begin_stage("drain", len(future))
        producer.flush()
        quiet = time.monotonic()
        while inflight.total or self.metrics.refreshes_waiting or time.monotonic() - quiet < QUIET_S:
            if self._poll(stack, reader, producer, inflight, 0.05):
                quiet = time.monotonic()
        self.stages["stream_s"] = quiet - self._stream_began

    def _poll(self, stack: Stack, reader: TopicReader, producer: EventProducer, inflight: InFlight,
              seconds: float) -> int:
        """Handle new messages and keep the stack and the screen up to date; return the number of messages."""
        messages = reader.poll(seconds)
        received = time.time()
        for message in messages:
            self._handle(stack.settings.kafka.plain(message.topic()), message.value(), inflight, received)
        producer.poll()
        if messages:
            self._moved = time.monotonic()
        self.view.unanswered = inflight.total
        waits = ""
        if inflight.total or self.metrics.refreshes_waiting:
            waits = f"{inflight.total:,} events and {self.metrics.refreshes_waiting:,} refreshes have no answer"
        self._tick(stack, self.metrics.events, waits)
        return len(messages)

    def _handle(self, topic: str, value: bytes | None, inflight: InFlight, received: float) -> None:
        if value is None:  # a user was erased
            return
        try:
            message: Any = decode(TOPICS[topic].model, value)
        except PoisonError as error:
            raise FreshetError(
                f"{topic} contains a record that is not a {TOPICS[topic].model.__name__}: {error.reason}") from error
        match message:
            case Recommendation():
                self.metrics.recommended(message)
                answered = inflight.answered(message.user_id, message.count)
                for sent_at in answered:
                    self.metrics.answered(received - sent_at)
                if answered:
                    self._order.answered(self._rows[message.user_id], len(answered))
            case KnowledgeUpdate():
                self.metrics.refreshed(message)
            case KnowledgeRequest():
                self.metrics.refresh_requested(message)
            case DeadLetter():
                self.metrics.dead_lettered(message)
                if self.settings.kafka.plain(message.topic) == BEHAVIOUR_EVENTS.name:
                    user = inflight.dead_lettered(message.partition, message.offset)
                    if user is not None:
                        self._order.answered(self._rows[user])

    def _tick(self, stack: Stack, done: int, waits: str) -> None:
        """Restart crashed processes, redraw and sample.

        Raises:
            StalledError: `waits` is not empty and there was no progress for 1.5 times `watchdog.stall_s`.
        """
        now = time.monotonic()
        if now - self._checked < 0.25:
            return
        self._checked = now
        stack.check()
        self._rate(now, done)
        if self._stream_began and now - self._sampled >= 1.0:
            self._sampled = now
            lag = {group: sum(topics.values()) for group, topics in self.sampler.lag.items()}
            self.metrics.sample(now - self._stream_began, self.view.unanswered, lag)
        self.view.lag, self.view.memory = self.sampler.lag, self.sampler.memory
        self.view.restarts = stack.restarts
        self.screen.show(self.view, self.metrics)
        if waits and now - self._moved > self._stall_s:
            raise StalledError(
                f"{self.view.stage}: {waits}, and there was no progress for {self._stall_s:.0f} s "
                f"({self.sampler.describe()}). Logs are in {run_folder(self.settings.home)}")

    def _rate(self, now: float, done: int) -> None:
        self._recent = [(at, count) for at, count in self._recent if now - at < 5.0] + [(now, done)]
        (first, before), (last, after) = self._recent[0], self._recent[-1]
        self.view.done = done
        self.view.rate = (after - before) / (last - first) if last > first else 0.0
        self.view.eta_s = (self.view.total - done) / self.view.rate if self.view.rate > 0 else None

    def _begin_stage(self, stage: str, total: int = 0) -> None:
        """Begin a stage. The time since the last call counts for the previous stage."""
        now = time.monotonic()
        self.stages[self.view.stage] = round(now - self._stage_began, 3)
        self._stage_began = self._moved = now
        self._recent = []
        self.view = replace(self.view, stage=stage, done=0, total=total, rate=0.0, eta_s=None)
        if total:
            self.screen.show(self.view, self.metrics, force=True)

    @property
    def _stall_s(self) -> float:
        # The roles' own watchdogs restart a role after stall_s. Give up only if that did not help.
        return self.settings.watchdog.stall_s * 1.5

    def _report(
        self, artifact: Artifact, dataset: data.Dataset, began: float, problem: BaseException | None,
    ) -> None:
        stories = telling.tell(self.metrics.diary.turns, dataset, artifact, self.settings, self._beats)
        stream_s = self.stages.pop("stream_s", 0.0) or time.monotonic() - self._stream_began
        figures = self.metrics.figures(stream_s, self.settings.fit.seed) | {
            "wall_s": time.monotonic() - began,
            "cost": cost(self._counters, len(self.metrics.made), self.metrics.events,
                         self.settings.metrics.cost_per_hour),
            "described": self._described,
            "stories": {kind: None if story is None else asdict(story) for kind, story in stories.items()},
            "stream_s": stream_s,
            "peak_rss_bytes": self.sampler.peak,
            "stages": self.stages,
            "fit": report.fit_stages(self.settings),
            "held_out_nll": report.parts(artifact),
            "restarts": self.view.restarts,
            "interrupted": isinstance(problem, KeyboardInterrupt),
            "error": str(problem) if isinstance(problem, FreshetError) else None,
            "versions": report.versions(artifact),
            "settings": report.plain_settings(self.settings),
            "run": {"data": str(self.folder or "MovieLens-100K"), "speed": self.speed, "window": self.window,
                    "per_user": self.per_user},
        }
        folder = self.out / datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "report.json").write_bytes(orjson.dumps(figures, option=orjson.OPT_INDENT_2))
        (folder / "report.html").write_text(report.html(
            figures, self.metrics, artifact, stories, dict(zip(dataset.items, dataset.titles, strict=True))))
        self.screen.say(report.closing(figures, folder))


def default_window(events: int) -> int:
    """Return the maximum number of unanswered events: 256, fewer in a run so short that all of it would be in flight.

    256 is enough that no role waits for the producer. A larger number would only make the recommendation older that
    judges a user's next event.
    """
    return min(256, max(8, events // 20))


def _event(dataset: data.Dataset, events: data.Events, row: int) -> BehaviourEvent:
    return BehaviourEvent(
        user_id=dataset.users[events.user[row]], item_id=dataset.items[events.item[row]],
        event_time=float(events.time[row]), event_type=dataset.types[events.type[row]])


def _placed_event(inflight: InFlight, user: str, at: float, _: Any, message: Any) -> None:
    inflight.placed(user, at, message.partition(), message.offset())
