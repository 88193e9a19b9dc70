"""The web shop of examples/shop.py: the same for a seed, alive, and answered as its rules say."""

from __future__ import annotations

import csv
import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import orjson
import pytest
from confluent_kafka import Producer

from models.data.evidence import NO_EVIDENCE, evidence
from models.data.loading import load_dataset
from schemas.topics import TOPICS
from tests.examples.conftest import ROOT, World
from tests.system.conftest import fit
from tests.system.stack import Stack


@pytest.fixture(scope="module")
def records() -> list[Any]:
    import sys

    sys.path.insert(0, str(ROOT / "examples"))
    try:
        from shop import shop  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(ROOT / "examples"))
    made = list(shop(1, 60, 120, 30))
    assert made == list(shop(1, 60, 120, 30)) != list(shop(2, 60, 120, 30))
    return sorted(made, key=lambda one: one[0])


def test_every_message_is_one_that_its_topic_takes(records: list[Any]) -> None:
    assert 2000 < len(records) < 5000
    for _, topic, key, value in records:
        if value is not None:
            message = TOPICS[topic].model.model_validate(value)
            assert getattr(message, TOPICS[topic].key) == key


def test_items_come_and_go_tastes_drift_and_what_was_bought_comes_back(records: list[Any]) -> None:
    came: dict[str, float] = {}
    gone: dict[str, float] = {}
    kinds: defaultdict[str, list[str]] = defaultdict(list)
    bought: Counter[tuple[str, str]] = Counter()
    for at, topic, key, value in records:
        if topic == "catalogue":
            (came if value and value["available"] else gone)[key] = at
        elif topic == "behaviour-events":
            item, kind = value["item_id"], value["event_type"]
            assert came[item] <= at
            assert at < gone.get(item, float("inf")) + 900 or kind == "Product Returned"  # a visit under way goes on
            kinds[key].append(item.split("-")[0])
            bought[key, item] += {"Order Completed": 1, "Product Returned": -1}.get(kind, 0)
    assert min(bought.values()) == 0
    assert len(came) == 149
    assert len(gone) == 29
    ends = [[Counter(part).most_common(1)[0][0] for part in (some[: len(some) // 3], some[-len(some) // 3:])]
            for some in kinds.values()]
    assert sum(first != last for first, last in ends) > len(ends) / 4


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_shop_runs_on_a_stack_and_its_rules_hold(world: World, tmp_path: Path) -> None:
    """Withdrawn and returned items are in no list, visitors get what is popular, limits and users' labels hold."""
    data = tmp_path / "shop"
    world.run("shop", "--out", str(data))
    dataset = load_dataset(data)
    assert evidence(dataset).skipped[NO_EVIDENCE] > 50
    fit(tmp_path / "home", data, world.settings)
    with Stack(tmp_path / "home", **world.settings, FRESHET_RANKING_MOST="kind=3") as stack:
        said = world.run("shop", "--bootstrap", stack.kafka.bootstrap)
        live = [orjson.loads(line) for line in (data / "live.jsonl").read_text().splitlines()]
        assert f"{len(live):,} after it" in said
        stack.until(lambda: len(stack.answered()) > 50 and all(
            name in stack.answered() for name in ("visitor-24", "visitor-29")), 120)
        # Everybody comes by once more, when all is done.
        with (data / "events.csv").open() as file:
            past = list(csv.DictReader(file))
        events = past + [one["value"] for one in live if one["topic"] == "behaviour-events"]
        users = {one["user_id"] for one in events} | {"nobody"}
        producer = Producer({"bootstrap.servers": stack.kafka.bootstrap})
        for user in users:
            producer.produce(stack.kafka.full("user-seen"), key=user, value=json.dumps(
                {"user_id": user, "deny": ["brand:Alder"]}))
        producer.flush(20)

        def last() -> dict[str, dict[str, Any]]:
            return {one["user_id"]: one for one in stack.records("recommendations")
                    if one["reason"] == "seen" and one["user_id"] in users}

        stack.until(lambda: last().keys() == users, 120)
        lists = last()
        catalogue = {one["key"]: one["value"] for one in live if one["topic"] == "catalogue"}
        withdrawn = {key for key, value in catalogue.items() if not (value and value["available"])}
        assert len(withdrawn) == 29
        returned = {(one["user_id"], one["item_id"]) for one in live
                    for one in [one["value"]] if one and one.get("event_type") == "Product Returned"}
        assert returned
        for user, found in lists.items():
            items = [one["item_id"] for one in found["items"]]
            assert not withdrawn & set(items)
            assert not any((user, item) in returned for item in items)
            assert max(Counter(item.split("-")[0] for item in items).values()) <= 3
            assert not any("brand:Alder" in (catalogue[item] or {"labels": []})["labels"] for item in items)
        assert any("deny=brand:Alder" in found["rules"] for found in lists.values())
        assert any("most=kind" in found["rules"] for found in lists.values())
        assert lists["nobody"]["source"] == "popular"
        seen = [one for one in stack.records("recommendations") if one["user_id"].startswith("visitor-")]
        assert {one["source"] for one in seen} == {"popular"}
        assert not stack.records("dead-letters")
