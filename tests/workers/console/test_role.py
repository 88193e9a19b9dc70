"""The role `console` as a process on real brokers: what it reads, serves, survives, and how it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import orjson
import pytest
from confluent_kafka import KafkaError, KafkaException, Producer
from confluent_kafka.admin import AdminClient, NewTopic

from schemas.liveness import counters_file, ready_file
from schemas.settings import KafkaSettings
from schemas.settings.librdkafka import client
from schemas.topics import CHANGELOG, DEAD_LETTERS, KNOWLEDGE_UPDATES, RECOMMENDATIONS
from streams.service.outbox import partition_of
from tests.workers.brokers import BROKERS, ROOT, kill_broker, settings_for, start_broker
from tests.workers.fitted import N, publish, settings_in
from tests.workers.views.reading.sent import changed, judgement, letter, recommendation, record, request, state, update
from workers.kafka.configuration import producer
from workers.kafka.topics import create_topics
from workers.supervision.broker import free_port
from workers.views.reading.folding import LiveRecord

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
HOSTILE = "<script>alert('ü')</script>/../\n"


def _produced(sender: Producer, one: LiveRecord, number: int) -> bool:
    """Return whether a record was handed over; False while the client has not heard of a new topic's partitions."""
    try:
        sender.produce(one.topic, one.value, key=one.key, partition=number)
    except KafkaException as error:
        if error.args[0].code() != KafkaError._UNKNOWN_PARTITION:
            raise
        sender.poll(0.1)
        return False
    return True


class Running:
    """A broker with the topics, a home with a fitted version, and a console on them."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.broker = start_broker(kind, folder)
        self.kafka: KafkaSettings = replace(settings_for(self.broker), partitions=3)
        self.home = folder / "home"
        publish(settings_in(self.home), "v1")
        create_topics(self.kafka)
        self.process: subprocess.Popen[bytes] | None = None
        self.port = free_port()
        self.log = folder / "console.log"

    def start(self, **environ: str) -> None:
        plain = {key: value for key, value in os.environ.items() if not key.startswith("FRESHET_")}
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "workers.cli", "role", "console"], cwd=ROOT, stdout=out, stderr=out,
                env=plain | {"FRESHET_HOME": str(self.home), "FRESHET_KAFKA_BOOTSTRAP": self.kafka.bootstrap,
                             "FRESHET_KAFKA_PARTITIONS": "3", "FRESHET_LOG_TO": "stderr",
                             "FRESHET_CONSOLE_PORT": str(self.port)} | environ)

    def end(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(20)

    def send(self, *records: LiveRecord) -> None:
        sender = Producer(producer(self.kafka))
        for one in records:
            if one.topic == CHANGELOG:
                self._need_changelog()
            number = 0 if one.topic == DEAD_LETTERS.name else partition_of(one.key or b"", 3)
            self.wait(lambda: _produced(sender, one, number))  # noqa: B023 - called at once
        assert sender.flush(20) == 0

    def _need_changelog(self) -> None:
        """As streams does when it starts, after the console perhaps."""
        admin = AdminClient(client(self.kafka))
        if CHANGELOG not in admin.list_topics(timeout=10).topics:
            admin.create_topics([NewTopic(CHANGELOG, 3, 1)])[CHANGELOG].result(20)
            self.wait(lambda: CHANGELOG in admin.list_topics(timeout=10).topics)

    def get(self, path: str, **headers: str) -> httpx.Response:
        return httpx.get(f"http://127.0.0.1:{self.port}{path}", headers=headers, timeout=10)

    def status(self, path: str = "/v1/health") -> int:
        try:
            return self.get(path).status_code
        except httpx.TransportError:
            return 0

    def counters(self) -> dict[str, Any]:
        try:
            return orjson.loads(counters_file(self.home, "console").read_bytes())
        except (OSError, orjson.JSONDecodeError):
            return {}

    def wait(self, condition: Callable[[], object], seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process is None or self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)


@pytest.fixture(scope="module", params=BROKERS)
def console(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    running = Running(request.param, tmp_path_factory.mktemp("console"))
    yield running
    if running.process is not None:
        running.process.kill()
    kill_broker(running.broker)


@pytest.fixture(autouse=True)
def ended(console: Running) -> Iterator[None]:
    yield
    if console.process is not None and console.process.poll() is None:
        console.process.kill()
        console.process.wait()


def test_what_is_there_and_what_comes_is_served(console: Running) -> None:
    many = [record(recommendation(f"many{n}", items=(f"i{n % N}",), count=n)) for n in range(3000)]
    console.send(record(recommendation("u1")), record(request("u1")), record(update("u1")), record(letter(41)),
                 record(judgement("u1", 1, 2)), *many)
    console.start()
    console.wait(lambda: console.status() == 200)
    body = console.get("/v1/users/u1/recommendations").json()
    assert [(one["item_id"], one["title"]) for one in body["items"]] == [("i1", "1 things"), ("i2", "2 things")]
    assert console.get("/v1/users/many2999/recommendations").json()["count"] == 2999
    assert console.get("/v1/users/u1/knowledge").json()["version"] == 1
    assert console.status("/v1/users/u1/state") == 404  # streams has not started: there is no changelog yet

    tag = console.get("/v1/users/u1/recommendations").headers["etag"]
    console.send(record(recommendation("u1", items=("i3",), version=1, count=4)),
                 changed("u1", state("i1", "i3", cusum=0.5)), changed(HOSTILE, state("i3")))
    console.wait(lambda: console.status("/v1/users/u1/state") == 200)
    console.wait(lambda: console.get("/v1/users/u1/recommendations").json()["count"] == 4)
    answer = console.get("/v1/users/u1/recommendations", **{"If-None-Match": tag})
    assert (answer.status_code, answer.json()["items"][0]["item_id"]) == (200, "i3")
    body = console.get("/v1/users/u1/state").json()
    assert [one["item_id"] for one in body["history"]] == ["i3", "i1"]
    assert body["drift"] == {"value": 0.5, "threshold": 5.0, "drifted": False}  # of the fitted version
    path = quote(HOSTILE, safe="")
    console.wait(lambda: console.status(f"/v1/users/{path}/state") == 200)
    assert console.get(f"/v1/users/{path}/state").json()["user_id"] == HOSTILE
    body = console.get("/v1/items/i3").json()
    assert {one["user_id"] for one in body["takers"]} == {"u1", HOSTILE}
    assert body["by_behaviour"]
    assert "FRESHET_QDRANT_URL" in body["problem"]
    assert console.get("/v1/items/i29").json()["title"] == "29 things"
    assert console.status("/v1/items/i30") == 404

    console.send(changed("u1", None), *(LiveRecord(name, 0, 0.0, b"u1", None) for name in (
        RECOMMENDATIONS.name, KNOWLEDGE_UPDATES.name)))  # erased
    console.wait(lambda: console.status("/v1/users/u1/state") == 404)
    console.wait(lambda: console.status("/v1/users/u1/recommendations") == 404)
    assert (console.home / "console").is_dir()
    assert console.end() == 0
    assert not (console.home / "console").exists()
    assert console.counters()["ended"] == "clean"


def test_it_is_watched_as_the_other_roles_are(console: Running) -> None:
    metrics = free_port() - 7
    console.start(FRESHET_METRICS_PORT=str(metrics), FRESHET_CONSOLE_API_KEYS="k1")
    console.wait(lambda: console.status() == 200)
    assert console.status("/v1/users/u1/state") == 401
    assert console.get("/v1/users/many1/recommendations", **{"X-Api-Key": "k1"}).status_code == 200
    found = httpx.get(f"http://127.0.0.1:{metrics + 7}/metrics", timeout=10).text
    assert 'freshet_ready{role="console"} 1.0' in found
    assert "freshet_views_caught_up 1.0" in found
    assert 'freshet_console_request_seconds_count{of="users",status="4xx"} 1.0' in found
    assert 'freshet_records_processed_total{role="console"}' in found
    for path in ("/healthz", "/readyz", "/livez"):
        assert httpx.get(f"http://127.0.0.1:{metrics + 7}{path}", timeout=10).status_code == 200, path
    assert console.end(signal.SIGINT) == 0


def test_a_port_that_is_taken_stops_nothing(console: Running) -> None:
    console.start()
    console.wait(lambda: console.status() == 200)
    first = console.process
    console.wait(lambda: console.counters().get("pid") == (first and first.pid)
                 and console.counters().get("caught_up"))
    assert console.counters()["url"] == f"http://127.0.0.1:{console.port}"
    second = Running.__new__(Running)
    second.__dict__ = console.__dict__ | {"home": console.home.parent / "other", "log": console.home.parent / "2.log"}
    publish(settings_in(second.home), "v1")
    second.start()
    try:
        second.wait(ready_file(second.home, "console").exists)
        assert second.counters()["waits_for"] == "port"
        assert "FRESHET_CONSOLE_PORT" in second.log.read_text()
        assert first is not None
        first.send_signal(signal.SIGTERM)
        first.wait(20)
        second.wait(lambda: second.status() == 200)
        assert second.end() == 0
    finally:
        if second.process is not None:
            second.process.kill()


def test_without_a_port_there_is_no_console(console: Running) -> None:
    console.start(FRESHET_CONSOLE_PORT="0")
    assert console.process is not None
    assert console.process.wait(60) == 78
    last = console.log.read_text().splitlines()[-1]
    assert last == "freshet: FRESHET_CONSOLE_PORT is 0, which is no console; set it to a port to run one"
