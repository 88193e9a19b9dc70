"""The knowledge and ranking processes on a real broker and the embedded store: killed, starved and reloaded."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import orjson
import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition
from pydantic import BaseModel

from schemas.codec import encode
from schemas.deployments import Deployments
from schemas.messages import (
    DeadLetter,
    JudgedEvent,
    KnowledgeRequest,
    ModelUpdate,
    RankingRequest,
)
from schemas.settings import QdrantSettings, Settings, to_environ
from schemas.topics import (
    DEAD_LETTERS,
    JUDGEMENTS,
    KNOWLEDGE_REQUESTS,
    KNOWLEDGE_UPDATES,
    MODEL_UPDATES,
    RANKING_REQUESTS,
    RECOMMENDATIONS,
    Topic,
)
from tests.workers.brokers import BROKERS, ROOT, kill_broker, settings_for, start_broker
from tests.workers.fitted import DIM, publish, settings_in
from workers.cli.service import ROLE_MODULES
from workers.home.store_key import kept_key
from workers.kafka.configuration import consumer, producer
from workers.kafka.topics import create_topics, partitions
from workers.store import QdrantStore

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
CODE = "from {module} import main; from schemas.settings import load; main(load(){more})"


class Stack:
    """Broker, store and the two roles, each its own process."""

    def __init__(self, kind: str, folder: Path) -> None:
        self._broker = start_broker(kind, folder)
        self.settings: Settings = replace(settings_in(folder / "home"), kafka=settings_for(self._broker))
        self.run = self.settings.home / "run"
        publish(self.settings, "m2", seed=1)
        publish(self.settings, "m1")
        create_topics(self.settings.kafka)
        self._children: list[subprocess.Popen[bytes]] = []
        self.start("store")
        self.wait((self.run / "store.ready").is_file)
        url = (self.run / "store.ready").read_text()
        key = kept_key(self.settings.home, url)
        self.settings = replace(self.settings, qdrant=QdrantSettings(url=url, api_key=key, timeout_s=1))
        self.store = QdrantStore(url, DIM, self.settings.qdrant)

    def start(self, role: str, more: str = "", *, wait: bool = False) -> subprocess.Popen[bytes]:
        child = subprocess.Popen(
            [sys.executable, "-c", CODE.format(module=ROLE_MODULES[role], more=more)], cwd=ROOT,
            env={**os.environ, **to_environ(self.settings)})
        self._children.append(child)
        if wait:
            ready = self.run / f"{role}.ready"
            self.wait(lambda: ready.is_file() or child.poll() is not None)
            assert child.poll() is None
        return child

    @staticmethod
    def wait(condition: Callable[[], bool], seconds: float = 90) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def produce(self, topic: Topic, messages: list[BaseModel]) -> None:
        sender = Producer(producer(self.settings.kafka))
        for message in messages:
            sender.produce(topic.name, encode(message), key=getattr(message, topic.key))
        assert sender.flush(20) == 0

    def collect(self, topic: Topic, done: Callable[[list], bool], seconds: float = 90) -> list:
        """Return the messages of a topic once `done` accepts them."""
        reader = Consumer(consumer(self.settings.kafka, "none"))
        number = partitions(self.settings.kafka, [topic.name])[topic.name]
        reader.assign([TopicPartition(topic.name, part, OFFSET_BEGINNING) for part in range(number)])
        messages: list = []
        deadline = time.monotonic() + seconds
        while not done(messages) and time.monotonic() < deadline:
            messages += [topic.model.model_validate_json(m.value())
                         for m in reader.consume(500, 0.2) if m.error() is None]
        reader.close()
        assert done(messages), f"{len(messages)} messages of {topic.name}: {messages[-3:]}"
        return messages

    def progress(self, role: str) -> dict:
        return orjson.loads((self.run / f"{role}.json").read_bytes())

    def close(self) -> None:
        for child in self._children:
            child.kill()
            child.wait()
        kill_broker(self._broker)


@pytest.fixture(params=BROKERS)
def stack(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stack]:
    stack = Stack(request.param, tmp_path)
    yield stack
    stack.close()


def knowledge_request(user: str, version: int = 1) -> KnowledgeRequest:
    return KnowledgeRequest(
        user_id=user, version=version, reason="cold_start", history=["i1", "i2"], count=2, event_id="e",
        event_time=10.0, caused_at=1.0, requested_at=2.0)


def ranking_request(user: str, version: int, **fields: object) -> RankingRequest:
    return RankingRequest(
        user_id=user, reason="event", history=["i1", "i2", "i3"], count=3, knowledge_version=version, event_time=20.0,
        caused_at=1.0, requested_at=2.0, judged=[JudgedEvent(event_id="e3", item_id="i3", position=2, count=3)],
    ).model_copy(update=fields)


def test_kill_9_of_the_knowledge_worker_loses_no_refresh(stack: Stack) -> None:
    users = [f"u{i}" for i in range(400)]
    worker = stack.start("knowledge", wait=True)
    stack.produce(KNOWLEDGE_REQUESTS, [knowledge_request(user) for user in users])
    stack.wait(lambda: stack.store.count() > 20)
    worker.kill()
    worker.wait()
    assert stack.store.count() < 400
    worker = stack.start("knowledge")
    updates = stack.collect(KNOWLEDGE_UPDATES, lambda got: {u.user_id for u in got} == set(users))
    assert {(u.version, u.model_version, u.written) for u in updates} == {(1, "m1", True)}
    held = stack.store.read(users)
    assert all(held[u.user_id].history_hash == u.history_hash for u in updates)
    worker.terminate()
    assert worker.wait(30) == 0


def test_ranking_continues_while_the_store_is_unavailable(stack: Stack) -> None:
    stack.start("knowledge", wait=True)
    stack.start("ranking", wait=True)
    stack.produce(KNOWLEDGE_REQUESTS, [knowledge_request("ann")])
    stack.collect(KNOWLEDGE_UPDATES, lambda got: len(got) == 1)
    stack.produce(RANKING_REQUESTS, [ranking_request("ann", 1), ranking_request("bob", 0)])
    recs = {r.user_id: r for r in stack.collect(RECOMMENDATIONS, lambda got: len(got) == 2)}
    assert (recs["ann"].source, recs["ann"].knowledge_version, recs["ann"].knowledge_behind) == ("fused", 1, 1)
    assert (recs["bob"].source, recs["bob"].fallback) == ("reference", "no_knowledge")
    (judgement,) = stack.collect(JUDGEMENTS, lambda got: len(got) == 1)
    assert [m.count for m in judgement.margins] == [3]

    (store, *_) = stack._children
    store.kill()
    store.wait()
    stack.produce(RANKING_REQUESTS, [ranking_request(f"c{i}", 1) for i in range(50)])
    recs = stack.collect(RECOMMENDATIONS, lambda got: len(got) == 52)
    assert {r.fallback for r in recs if r.user_id.startswith("c")} == {"store_unavailable"}
    stack.produce(KNOWLEDGE_REQUESTS, [knowledge_request("dan")])  # waits for the store
    stack.wait(lambda: orjson.loads((stack.run / "knowledge.json").read_bytes())["waits_for"] == "store")

    stack.start("store", ", " + stack.settings.qdrant.url.rsplit(":", 1)[1])
    stack.collect(KNOWLEDGE_UPDATES, lambda got: {u.user_id for u in got} == {"ann", "dan"})
    stack.wait(lambda: orjson.loads((stack.run / "ranking.json").read_bytes())["store_available"])
    stack.produce(RANKING_REQUESTS, [ranking_request("dan", 1)])
    stack.collect(RECOMMENDATIONS, lambda got: any(r.user_id == "dan" and r.source == "fused" for r in got))


def test_models_are_reloaded_between_batches_and_invalid_ones_refused(stack: Stack) -> None:
    knowledge = stack.start("knowledge", wait=True)
    ranking = stack.start("ranking", wait=True)
    now = time.time()
    stack.produce(MODEL_UPDATES, [ModelUpdate(model_version="m9", published_at=now)])  # is not here (yet)
    stack.produce(MODEL_UPDATES, [ModelUpdate(model_version="m2", published_at=1e300)])
    letters: list[DeadLetter] = stack.collect(DEAD_LETTERS, lambda got: len(got) == 2)
    assert {(x.role, x.topic) for x in letters} == {("knowledge", "model-updates"), ("ranking", "model-updates")}
    assert {x.reason for x in letters} == {"published_at 1e+300 is in the future"}
    for role in ("knowledge", "ranking"):
        stack.wait(lambda role=role: "no model version 'm9'" in stack.progress(role)["model_waiting"])
    stack.produce(MODEL_UPDATES, [ModelUpdate(model_version="m2", published_at=now + 1)])
    for role in ("knowledge", "ranking"):
        stack.wait(lambda role=role: stack.progress(role)["model_version"] == "m2")
    stack.produce(KNOWLEDGE_REQUESTS, [knowledge_request("ann")])
    (update,) = stack.collect(KNOWLEDGE_UPDATES, lambda got: len(got) == 1)
    stack.produce(RANKING_REQUESTS, [ranking_request("ann", 1)])
    (rec,) = stack.collect(RECOMMENDATIONS, lambda got: len(got) == 1)
    assert (update.model_version, rec.model_version, rec.source) == ("m2", "m2", "fused")
    assert knowledge.poll() is None
    assert ranking.poll() is None
    ranking.terminate()
    assert ranking.wait(30) == 0
    stack.start("ranking", wait=True)  # starts with the version in use, not with the one current at the fit
    assert stack.progress("ranking")["model_version"] == "m2"
    Deployments(stack.settings.home).fitted("m1", time.time())  # as `freshet fit` does, beside running roles
    for role in ("knowledge", "ranking"):
        stack.wait(lambda role=role: stack.progress(role)["model_version"] == "m1")
        assert stack.progress(role)["model_waiting"] == ""


def test_no_request_is_dropped_while_a_new_version_is_loaded(stack: Stack) -> None:
    stack.start("ranking", wait=True)
    sent = 0

    def keep_asking() -> bool:
        nonlocal sent
        stack.produce(RANKING_REQUESTS, [ranking_request(f"u{sent + at}", 0) for at in range(20)])
        sent += 20
        return stack.progress("ranking")["model_version"] == "m2"

    keep_asking()
    stack.collect(RECOMMENDATIONS, lambda got: len(got) == sent)
    selected = subprocess.run(
        [sys.executable, "-m", "workers.cli", "models", "--select", "m2"], cwd=ROOT, check=False, capture_output=True,
        text=True, env={**os.environ, **to_environ(stack.settings)}, timeout=60)
    assert selected.returncode == 0, selected.stderr
    assert selected.stdout == "in use: m2; running roles load it now\n"
    stack.wait(keep_asking)
    keep_asking()
    recs = stack.collect(RECOMMENDATIONS, lambda got: len(got) >= sent)
    assert sorted(r.user_id for r in recs) == sorted(f"u{at}" for at in range(sent))
    assert {r.model_version for r in recs} == {"m1", "m2"}
    stack.collect(DEAD_LETTERS, lambda got: not got, seconds=1)
