"""The main job as seen by other services, on both brokers: events in, fresh knowledge, recommendations out."""

from __future__ import annotations

import base64
import os
import random
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import orjson
import pytest
from confluent_kafka import Producer

from schemas.artifacts import Registry
from schemas.settings import load
from streams.profile.fold import Event
from streams.service.following import load_planner
from tests.system.stack import Stack, command, plain_consumer, wait_for
from workers.home.store_key import kept_key
from workers.kafka.reader import read_all

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
BASE = 1_700_000_000


def sessions(items: list[str], users: int, per_user: int, seed: int = 3, prefix: str = "n") -> list[dict]:
    """Return users' events in order of time; each user's taste changes halfway."""
    rng = random.Random(seed)
    rows = []
    for n in range(users):
        for k in range(per_user):
            pool = items[n % 5::5] if k < per_user // 2 else items[(n + 2) % 5::5]
            rows.append({"user_id": f"{prefix}{n}", "item_id": rng.choice(pool), "event_time": BASE + 60 * k + n,
                         "event_id": f"{prefix}-{n}-{k}"})
    rows.sort(key=lambda row: row["event_time"])
    return rows


def catalogue(stack: Stack) -> list[str]:
    return Registry(stack.home).open().items()


def fully_answered(stack: Stack, events: list[dict]) -> bool:
    wanted: dict[str, set] = {}
    for event in events:
        wanted.setdefault(event["user_id"], set()).add(event["event_id"])
    counts = stack.answered()
    return all(counts.get(user, 0) >= len(ids) for user, ids in wanted.items())


def replayed(stack: Stack, events: list[dict]) -> dict:
    """Return the expected states: fold the events one at a time in one thread."""
    settings = load({"FRESHET_HOME": str(stack.home)}, None)
    planner = load_planner(settings)
    states: dict = {}
    for offset, event in enumerate(events):
        planner.events(states, [Event(event["user_id"], event["item_id"], float(event["event_time"]), "interaction",
                                      event["event_id"], offset, 0.0)], now=BASE)
    return states


def assert_states_equal_replay(stack: Stack, events: list[dict], *, in_order: bool = True) -> None:
    """Compare the stack's states with the replay. Interests are bit-identical if users' events arrived `in_order`."""
    states, expected = stack.states(), replayed(stack, events)
    assert expected.keys() <= states.keys()
    for user, want in expected.items():
        state = states[user]
        assert (state.items, state.times, state.count) == (want.items, want.times, want.count), user
        for interest, wanted in ((state.short, want.short), (state.long, want.long)):
            assert np.allclose(np.frombuffer(interest, "<f4"), np.frombuffer(wanted, "<f4"),
                               atol=0 if in_order else 1e-5, rtol=0), f"interest of {user}"


def test_plain_clients_send_events_and_read_recommendations(stack: Stack):
    events = sessions(catalogue(stack), users=12, per_user=16)
    consumer = plain_consumer(stack.kafka.bootstrap, "a-service")
    consumer.subscribe(["recommendations"])
    answers: list[dict] = []

    def covered() -> bool:
        for message in consumer.consume(500, 0.2):
            assert message.error() is None
            assert message.key().decode() == orjson.loads(message.value())["user_id"]
            answers.append(orjson.loads(message.value()))
        newest = {answer["user_id"]: answer for answer in sorted(answers, key=lambda a: a["count"])}
        return len(newest) == 12 and all(answer["count"] == 16 for answer in newest.values())

    # Without keys the producer spreads a user's events over all partitions. The pauses let knowledge arrive in between.
    for start in range(0, len(events), 24):
        stack.produce(events[start:start + 24], keyed=False)
        time.sleep(0.5)
    wait_for(covered, 90, stack.log_tails)
    consumer.close()
    seen: dict[str, set[str]] = {}
    for event in events:
        seen.setdefault(event["user_id"], set()).add(event["item_id"])
    for answer in answers:
        assert len(answer["items"]) == 10
        assert len({item["item_id"] for item in answer["items"]}) == 10
        assert answer["fallback"] is None if answer["source"] == "fused" else answer["fallback"]
        assert (answer["kl"] > 0) == (answer["source"] != "reference")
        if answer["count"] == 16:
            assert not seen[answer["user_id"]] & {item["item_id"] for item in answer["items"]}
    stack.until(lambda: {update["user_id"] for update in stack.records("knowledge-updates")} == set(seen))
    stack.until(lambda: any(answer["source"] == "fused" for answer in stack.records("recommendations")))
    versions: dict[str, int] = {}
    for update in stack.records("knowledge-updates"):
        assert update["version"] > versions.get(update["user_id"], 0), "a user's versions only increase"
        versions[update["user_id"]] = update["version"]
    assert stack.records("dead-letters") == []
    assert_states_equal_replay(stack, events, in_order=False)


POISON = [
    b"not json", b"\xff\xfe\x00", b"{}", b"[]", b'{"user_id":"u"}', b'{"user_id":7,"item_id":"i","event_time":1}',
    b'{"user_id":"u","item_id":"i","event_time":"soon"}', b'{"user_id":"u","item_id":"i","event_time":NaN}',
    b'{"user_id":"u","item_id":"i","event_time":99999999999}', b"", None, b'{"user_id":"' + b"x" * 1000 + b'"}',
]


def test_poison_goes_to_dead_letters_and_processing_continues(stack: Stack):
    good = sessions(catalogue(stack), users=6, per_user=4)
    mixed: list = []
    for n, event in enumerate(good):
        mixed += [POISON[n % len(POISON)], event]
    stack.produce(mixed, keyed=False)
    stack.until(lambda: fully_answered(stack, good) and len(stack.records("dead-letters")) >= len(good))
    letters = stack.records("dead-letters")
    assert len(letters) == len(good)
    originals = {(m.topic(), m.partition(), m.offset()): m.value() or b""
                 for m in read_all(stack.kafka, ["behaviour-events"])}
    for letter in letters:
        assert letter["reason"]
        assert base64.b64decode(letter["value"]) == originals[letter["topic"], letter["partition"], letter["offset"]]
    assert_states_equal_replay(stack, good, in_order=False)


@pytest.mark.timeout(600)
def test_roles_killed_one_after_the_other_lose_nothing(stack: Stack):
    """All roles share one stack: starting it takes longest, and it must recover completely each time."""
    for role in ("streams", "ranking", "knowledge", "store"):
        events = sessions(catalogue(stack), users=10, per_user=24, seed=len(role), prefix=role)
        third = len(events) // 3
        stack.produce(events[:third])
        time.sleep(1.0)
        stack.produce(events[third:2 * third])
        stack.kill(role)  # under load: the last batch was just produced
        stack.produce(events[2 * third:])
        stack.produce(events[third:third + 40])  # like a producer that resends after a crash
        stack.until(lambda events=events: fully_answered(stack, events), 90)
        users = {event["user_id"] for event in events}
        stack.until(
            lambda users=users: {update["user_id"] for update in stack.records("knowledge-updates")} >= users, 60)
        assert stack.records("dead-letters") == [], role
        assert_states_equal_replay(stack, events)
    newest: dict[str, int] = {}
    for update in stack.records("knowledge-updates"):
        assert update["version"] >= newest.get(update["user_id"], 0)
        newest[update["user_id"]] = update["version"]


def test_instances_of_a_role_share_the_work_and_survive_a_crash(stack: Stack, tmp_path):
    events = sessions(catalogue(stack), users=12, per_user=20, seed=11)
    half = len(events) // 2
    second = Path(shutil.copytree(stack.home / "models", tmp_path / "second" / "models")).parent
    running = stack.running
    assert running is not None
    environ = stack.environ | {
        "FRESHET_HOME": str(second), "FRESHET_KAFKA_BOOTSTRAP": running.bootstrap,
        "FRESHET_QDRANT_URL": running.qdrant_url, "FRESHET_QDRANT_API_KEY": kept_key(stack.home, running.qdrant_url),
        "FRESHET_KAFKA_SESSION_TIMEOUT_S": stack.environ["FRESHET_KAFKA_SESSION_TIMEOUT_S"]}
    stack.produce(events[:half])
    instance = subprocess.Popen(
        command("up", "--roles", "streams,ranking"), env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True)
    try:
        stack.until((second / "run" / "streams.ready").exists, 90)
        stack.produce(events[half:half + half // 2])
        stack.until(lambda: fully_answered(stack, events[:half + half // 2]), 90)
        first_partitions, second_partitions = partitions_of(stack.home), partitions_of(second)
        assert second_partitions, "the second instance got partitions"
        assert first_partitions - second_partitions, "the first instance kept some"
    finally:
        os.killpg(instance.pid, signal.SIGKILL)
        instance.wait(10)
    stack.produce(events[half + half // 2:])
    stack.until(lambda: fully_answered(stack, events), 120)
    assert stack.records("dead-letters") == []
    assert_states_equal_replay(stack, events)


def partitions_of(home: Path) -> set[str]:
    """Return the partitions for which an instance has opened states in RocksDB."""
    return {path.name for path in (home / "streams").rglob("user-state-*.db")}


def send_other_names(stack: Stack) -> str:
    """Send an event with other names and a header; return its topic/partition/offset once it is a dead letter."""
    producer = Producer({"bootstrap.servers": stack.kafka.bootstrap})
    producer.produce("behaviour-events", b'{"who": "v1", "what": "x", "ts": 1706702400}', headers=[("tracker", b"t")])
    assert producer.flush(30) == 0
    stack.until(lambda: bool(letters_of_other_names(stack)))
    return "{topic}/{partition}/{offset}".format(**letters_of_other_names(stack)[0])


def letters_of_other_names(stack: Stack) -> list[dict]:
    return [letter for letter in stack.records("dead-letters") if "the event has who" in letter["reason"]]


def test_commands_beside_a_running_service(stack: Stack):
    lines = "".join(orjson.dumps(event).decode() + "\n" for event in sessions(catalogue(stack), users=3, per_user=12))
    produced = stack.run("produce", "-", stdin=lines)
    assert produced.returncode == 0, produced.stderr
    client = Producer({"bootstrap.servers": stack.kafka.bootstrap})
    client.produce("catalogue", b'{"item_id": "new-1", "title": "The [b]brand new[/b] one"}', key=b"new-1")
    assert client.flush(30) == 0
    stack.produce([{"user_id": "n1", "item_id": "new-1", "event_time": time.time()}])
    stack.until(lambda: stack.answered().get("n1", 0) == 13)
    shown = stack.run("user", "n1")
    assert shown.returncode == 0, shown.stderr
    assert "13 events" in shown.stdout
    assert "The [b]brand new[/b] one [new-1]" in " ".join(shown.stdout.split())
    assert re.search(r" 1 .*The \w+ \w+ i\d+ \[i\d+\]", shown.stdout), shown.stdout
    nobody = stack.run("user", "nobody")
    assert nobody.returncode == 1
    assert "nobody" in nobody.stdout + nobody.stderr
    assert "Traceback" not in nobody.stderr
    tail = stack.run("tail", "recommendations", "--from-beginning", "-n", "1", "--titles")
    assert tail.returncode == 0, tail.stderr
    assert "user_id" in tail.stdout
    assert '"title":"The ' in tail.stdout
    place = send_other_names(stack)
    letters = stack.run("dead-letters")
    assert letters.returncode == 0, letters.stderr
    assert "user_id: missing; the event has who" in " ".join(letters.stdout.split())
    one = stack.run("dead-letters", "--show", place)
    assert '{"who": "v1"' in one.stdout, one.stderr
    again = stack.run("dead-letters", "--reason", "event has who", "--replay")
    assert "1 records were sent" in again.stdout, again.stderr
    stack.until(lambda: len(letters_of_other_names(stack)) == 2)  # it is as strange as before, and has all it had
    assert [letter["headers"] for letter in letters_of_other_names(stack)] == [[["tracker", "dA=="]]] * 2
    assert "of this user's records" in " ".join(stack.run("user", "v1").stdout.split())
    listed = stack.run("topics")
    assert listed.returncode == 0, listed.stderr
    assert "behaviour-events" in listed.stdout
    doctor = stack.run("doctor")
    assert doctor.returncode == 0, doctor.stdout + doctor.stderr
    assert "dead letter" in doctor.stdout
    assert "the event has who" in " ".join(doctor.stdout.split())
    health = stack.run("health", "--verbose")
    assert health.returncode == 0
    assert "dead letters, the last: user_id: missing; the event has who" in health.stdout
    stack.until(lambda: "dead letter" in stack.log.read_text())
    said = " ".join(stack.log.read_text().split())
    assert "streams: 1 dead letter (" in said or "streams: 2 dead letters (" in said
    assert "the event has who" in said
