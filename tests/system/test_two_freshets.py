"""Two stacks on one broker and one store, with the same users: nothing of one is seen, kept or sent by the other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient

from schemas.settings import QdrantSettings, to_environ
from tests.system.stack import Stack
from tests.workers.brokers import BROKERS, kill_broker, start_broker
from tests.workers.fitted import DIM, publish, settings_in
from workers.home.store_key import kept_key
from workers.store.qdrant import QdrantStore

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
USERS = [f"u{n}" for n in range(6)]
# The items that each one's users act on; the model knows i0 to i29.
WORLDS = {"spring-": [f"i{n}" for n in range(10)], "autumn.": [f"i{n}" for n in range(10, 20)]}


def environ(home: Path, prefix: str) -> dict[str, str]:
    settings = settings_in(home)
    publish(settings, "m1")
    out = to_environ(settings) | {"FRESHET_KAFKA_PREFIX": prefix, "FRESHET_KAFKA_PARTITIONS": "2"}
    return {name: value for name, value in out.items() if name != "FRESHET_HOME"}


@pytest.fixture(params=BROKERS)
def stacks(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[dict[str, Stack]]:
    """Both stacks by their prefix. The second one uses the first one's store and, if embedded, its broker."""
    one, other = WORLDS
    homes = {prefix: tmp_path / prefix for prefix in WORLDS}
    environs = {prefix: environ(home, prefix) for prefix, home in homes.items()}
    broker = start_broker("kafka", tmp_path) if request.param == "kafka" else None
    try:
        with Stack(homes[one], broker.bootstrap if broker else "", **environs[one]) as first:
            assert first.running is not None
            url = first.running.qdrant_url
            shared = {"FRESHET_QDRANT_URL": url, "FRESHET_QDRANT_API_KEY": kept_key(homes[one], url)}
            with Stack(homes[other], first.running.bootstrap, **environs[other], **shared) as second:
                yield {one: first, other: second}
    finally:
        if broker is not None:
            kill_broker(broker)


def test_two_freshets_share_nothing(stacks: dict[str, Stack]):
    for prefix, stack in stacks.items():
        items = WORLDS[prefix]
        stack.produce([
            {"user_id": user, "item_id": items[n], "event_time": 1_700_000_000 + 60.0 * n, "event_id": f"{user}/{n}"}
            for n in range(6) for user in USERS])
    next(iter(stacks.values())).produce([b"no event"])
    for stack in stacks.values():
        stack.until(lambda stack=stack: stack.answered() == dict.fromkeys(USERS, 6), 120)
        stack.until(lambda stack=stack: known(stack) == set(USERS), 120)
    for at, (prefix, stack) in enumerate(stacks.items()):
        own = set(WORLDS[prefix])
        states = stack.states()
        assert states.keys() == set(USERS)
        assert all({one.decode() if isinstance(one, bytes) else one for one in state.items} <= own
                   for state in states.values())
        for topic in ("ranking-requests", "knowledge-requests"):
            assert {item for message in stack.records(topic) for item in message["history"]} <= own
        assert {user: state.count for user, state in states.items()} == dict.fromkeys(USERS, 6)
        store = QdrantStore(stack.environ.get("FRESHET_QDRANT_URL", stack.running.qdrant_url), DIM, QdrantSettings(
            api_key=kept_key(stacks["spring-"].home, stack.running.qdrant_url)), f"{prefix}user_knowledge")
        try:
            points = store.read(USERS)
        finally:
            store.close()
        assert points.keys() == set(USERS)
        assert {point.count for point in points.values()} <= set(range(1, 7))
        # The commands see their own, by the prefix of the stack that runs on their home.
        assert f"{prefix}recommendations" in stack.run("topics").stdout
        shown = stack.run("user", "u0").stdout
        assert WORLDS[prefix][5] in shown
        assert "in the store: version" in shown
        letters = stack.run("dead-letters").stdout
        assert (f"1 of {prefix}behaviour-events" in letters) == (at == 0), letters
        assert stack.run("health").returncode == 0
        checked = " ".join(stack.run("doctor").stdout.split())
        assert f"{prefix}freshet-ranking 0" in checked, checked
        assert f"names begin with {prefix}" in checked
        assert "holds knowledge of 6 users" in checked
    one, other = stacks.values()
    assert one.run("dead-letters", "--show", "behaviour-events/0/99").returncode == 1
    sent = other.run("produce", "-", stdin='{"user_id": "new", "item_id": "i11", "event_time": 1700000000}')
    assert "autumn.behaviour-events" in sent.stdout, sent.stderr
    other.until(lambda: "new" in other.answered(), 60)
    assert "new" not in one.answered()
    assert "new" not in one.states()
    # What is on the servers: of one prefix or the other, and both have all of it.
    admin = AdminClient({"bootstrap.servers": one.kafka.bootstrap})
    topics = {name for name in admin.list_topics(timeout=10).topics if not name.startswith("__")}
    groups = {group.group_id for group in admin.list_consumer_groups(request_timeout=10).result().valid}
    for names in (topics, groups):
        plain = [{name.removeprefix(prefix) for name in names if name.startswith(prefix)} for prefix in WORLDS]
        assert plain[0] == plain[1]
        assert names == {prefix + name for prefix in WORLDS for name in plain[0]}
    assert "freshet-streams-user-state-changelog" in plain_of(topics)
    assert {"freshet-streams", "freshet-ranking", "freshet-knowledge"} <= plain_of(groups)  # those that committed


def known(stack: Stack) -> set[str]:
    return {update["user_id"] for update in stack.records("knowledge-updates")}


def plain_of(names: set[str]) -> set[str]:
    return {name.removeprefix(prefix) for prefix in WORLDS for name in names if name.startswith(prefix)}
