"""What is wrong with topics that are there already: their partitions and their settings."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.settings import load
from schemas.topics import (
    BEHAVIOUR_EVENTS,
    CATALOGUE,
    CHANGELOG,
    KEYED_BY_USER,
    KNOWLEDGE_UPDATES,
    misfits,
    shortcomings,
    to_grow,
)


@given(st.dictionaries(st.sampled_from([*KEYED_BY_USER, "dead-letters"]), st.integers(1, 8)), st.integers(1, 8))
def test_a_misfit_is_a_topic_keyed_by_user_with_another_number(found, partitions):
    text = misfits(found, partitions)
    wrong = {name for name, number in found.items() if number != partitions and name != "dead-letters"}
    assert {name for name in KEYED_BY_USER if f"{name} has {found.get(name)}" in text} == wrong
    assert bool(text) == bool(wrong)


def test_the_cure_is_the_setting_where_all_topics_agree_and_new_topics_where_they_do_not():
    assert "set FRESHET_KAFKA_PARTITIONS=6" in misfits(dict.fromkeys(KEYED_BY_USER, 6), 4)
    mixed = misfits(dict.fromkeys(KEYED_BY_USER, 4) | {CHANGELOG: 8}, 4)
    assert "set FRESHET" not in mixed
    assert f"{CHANGELOG} holds the user states" in mixed


def test_where_a_producer_came_first_there_is_one_cure():
    text = misfits({"behaviour-events": 1, "dead-letters": 1}, 4)
    assert "a producer came first" in text
    assert text.count("freshet topics --create") == 1
    assert "set FRESHET_KAFKA_PARTITIONS" not in text
    assert to_grow({"behaviour-events": 1, "judgements": 4}, 4) == {"behaviour-events": 1}
    assert to_grow({"behaviour-events": 1, CHANGELOG: 4}, 4) == {}  # there are states
    assert to_grow({"behaviour-events": 8}, 4) == {}  # partitions cannot be taken away


@pytest.mark.parametrize(("topic", "found", "min_insync", "wanted"), [
    (BEHAVIOUR_EVENTS, {}, 2, {}),  # a broker that reports nothing
    (BEHAVIOUR_EVENTS, BEHAVIOUR_EVENTS.config(2), 2, {}),
    (BEHAVIOUR_EVENTS, BEHAVIOUR_EVENTS.config() | {"retention.ms": "1", "min.insync.replicas": "3"}, 2, {}),
    (BEHAVIOUR_EVENTS, BEHAVIOUR_EVENTS.config() | {"message.timestamp.type": "CreateTime"}, 2,
     {"message.timestamp.type": "LogAppendTime", "min.insync.replicas": "2"}),
    (BEHAVIOUR_EVENTS, {"cleanup.policy": "compact"}, 1, {"cleanup.policy": "delete"}),
    (KNOWLEDGE_UPDATES, {"cleanup.policy": "delete"}, 1, {"cleanup.policy": "compact"}),
    (CATALOGUE, CATALOGUE.config(), 1, {}),
    (CATALOGUE, {"delete.retention.ms": "86400000"}, 1, {"delete.retention.ms": "3153600000000"}),
])
def test_shortcomings(topic, found, min_insync, wanted):
    assert {name: value for name, (value, _) in shortcomings(topic, found, min_insync).items()} == wanted


@pytest.mark.parametrize(("replication", "given", "wanted"), [("1", "", 1), ("2", "", 1), ("3", "", 2), ("3", "1", 1)])
def test_replicas_in_sync_follow_from_the_replication(replication, given, wanted):
    settings = load({"FRESHET_KAFKA_REPLICATION": replication, "FRESHET_KAFKA_MIN_INSYNC_REPLICAS": given})
    assert settings.kafka.min_insync == wanted
