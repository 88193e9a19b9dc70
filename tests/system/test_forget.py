"""A user is erased on a running stack: `freshet forget` and what is left of the user anywhere, on both brokers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest
from confluent_kafka import Producer

from schemas.settings import QdrantSettings, to_environ
from schemas.topics import KNOWLEDGE_REQUESTS, KNOWLEDGE_UPDATES, RECOMMENDATIONS
from tests.system.stack import CHANGELOG, Stack
from tests.workers.brokers import BROKERS, kill_broker, start_broker
from tests.workers.fitted import DIM, publish, settings_in
from workers.home.store_key import kept_key
from workers.kafka.reader import read_all
from workers.store.qdrant import QdrantStore

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
ANN, BOB = "ann-to-be-erased", "bob-who-stays"
COMPACTED = (CHANGELOG, KNOWLEDGE_REQUESTS.name, KNOWLEDGE_UPDATES.name, RECOMMENDATIONS.name)


@pytest.fixture(params=BROKERS)
def stack(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stack]:
    home = tmp_path / "home"
    settings = settings_in(home)
    publish(settings, "m1")
    environ = {name: value for name, value in to_environ(settings).items() if name != "FRESHET_HOME"}
    broker = start_broker("kafka", tmp_path) if request.param == "kafka" else None
    try:
        # With one replica of a prefix, so that both features are seen together.
        with Stack(home, broker.bootstrap if broker else "", **environ, FRESHET_KAFKA_PARTITIONS="2",
                   FRESHET_KAFKA_PREFIX="shop-") as running:
            yield running
    finally:
        if broker is not None:
            kill_broker(broker)


def events(user: str, first: int, last: int) -> list[dict[str, object]]:
    return [{"user_id": user, "item_id": f"i{n % 20}", "event_time": 1_700_000_000.0 + 60 * n,
             "event_id": f"{user}/{n}"} for n in range(first, last)]


def newest(stack: Stack, topic: str, user: str) -> bytes | None:
    """The newest value of the user in a compacted topic: what stays of it."""
    values = [record.value() for record in read_all(stack.kafka, [topic]) if record.key() == user.encode()]
    return values[-1] if values else None


def points(stack: Stack) -> set[str]:
    assert stack.running is not None
    url = stack.running.qdrant_url
    store = QdrantStore(url, DIM, QdrantSettings(api_key=kept_key(stack.home, url)), stack.kafka.full("user_knowledge"))
    try:
        return store.holds([ANN, BOB])
    finally:
        store.close()


def known(stack: Stack, user: str) -> bool:
    return newest(stack, KNOWLEDGE_UPDATES.name, user) is not None


def test_a_user_is_erased_everywhere_and_starts_again(stack: Stack):
    texts = stack.home / "knowledge" / "users.jsonl"
    texts.parent.mkdir(exist_ok=True)
    texts.write_bytes(b"".join(orjson.dumps({"user_id": user, "text": "wants films"}) + b"\n" for user in (ANN, BOB)))
    stack.produce(events(ANN, 0, 8) + events(BOB, 0, 8))
    stack.produce([orjson.dumps({"user_id": ANN, "item_id": None})])  # a dead letter that names her
    stack.until(lambda: stack.answered() == {ANN: 8, BOB: 8}, 120)
    stack.until(lambda: known(stack, ANN) and known(stack, BOB), 120)
    stack.until(lambda: points(stack) == {ANN, BOB}, 60)

    asked = time.time()
    done = stack.run("forget", ANN, "--json")
    assert done.returncode == 0, done.stdout + done.stderr + stack.log_tails()
    report = orjson.loads(done.stdout)
    assert set(report["removed"]) == {"streams", "topics", "store", "home"}
    assert (report["late"], report["back"]) == ([], [])
    held = {one["where"]: one for one in report["held"]}
    assert held["shop-behaviour-events"]["until"] >= asked + 7 * 86_400
    assert "1 unusable records" in held["shop-dead-letters"]["why"]
    assert [newest(stack, topic, ANN) for topic in COMPACTED] == [None] * 4
    assert all(newest(stack, topic, BOB) is not None for topic in COMPACTED)
    assert points(stack) == {BOB}
    assert stack.states().keys() == {BOB}
    assert [orjson.loads(line)["user_id"] for line in texts.read_bytes().splitlines()] == [BOB]
    assert ANN.encode() not in b"".join(path.read_bytes() for path in (stack.home / "guard").glob("*.msgpack"))
    logs = [path for path in (stack.home / "run").iterdir() if path.is_file()]
    assert [path.name for path in logs if ANN.encode() in path.read_bytes()] == []

    again = stack.run("forget", ANN)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "nothing was known of this user" in again.stdout
    shown = stack.run("user", ANN)
    assert "newest items" not in shown.stdout
    assert len(stack.records("dead-letters")) == 1, "no tombstone is a dead letter"

    # A producer of another service asks by a message, with any key; events that come later start a new user.
    producer = Producer({"bootstrap.servers": stack.kafka.bootstrap})
    producer.produce("shop-erasures", orjson.dumps({"user_id": BOB}), key=b"x")
    producer.produce("shop-erasures", orjson.dumps({"user_id": BOB}), key=b"other")
    assert producer.flush(30) == 0
    stack.kill("streams")  # wherever it is with them: it goes on at its next start
    stack.until(lambda: all(newest(stack, topic, BOB) is None for topic in COMPACTED), 60)
    stack.until(lambda: points(stack) == set(), 60)
    stack.produce(events(ANN, 8, 13))
    stack.until(lambda: ANN in stack.states() and stack.states()[ANN].count == 5, 60)
    stack.until(lambda: known(stack, ANN) and points(stack) == {ANN}, 120)
    state = stack.states()[ANN]
    assert state.items == [f"i{n}" for n in range(8, 13)]
    assert orjson.loads(newest(stack, RECOMMENDATIONS.name, ANN) or b"")["count"] == 5
    assert len(stack.records("dead-letters")) == 1
