from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from schemas.topics import BEHAVIOUR_EVENTS, JUDGEMENTS, KNOWLEDGE_UPDATES
from streams.decisions.forgotten import LOG_APPEND_TIME, Forgotten


def record(user: str | None, value: bytes | None = b"{}", at: int = 0, kind: int = LOG_APPEND_TIME) -> Any:
    return SimpleNamespace(key=None if user is None else user.encode(), value=value, timestamp=at, timestamp_type=kind)


def test_answers_from_before_are_dropped_until_their_writer_has_erased_the_user():
    forgotten = Forgotten()
    forgotten.add("ann", 100)
    old, other, end, new = record("ann"), record("bob"), record("ann", None), record("ann")
    assert forgotten.sort_out(JUDGEMENTS.name, [old, other, end, new]) == ([other, new], 1, 1)
    # Each writer ends its own topic.
    assert forgotten.sort_out(KNOWLEDGE_UPDATES.name, [old]) == ([], 0, 1)
    assert forgotten.sort_out(KNOWLEDGE_UPDATES.name, [end]) == ([], 1, 0)
    assert forgotten.sort_out(KNOWLEDGE_UPDATES.name, [new]) == ([new], 0, 0)
    assert forgotten.sort_out(JUDGEMENTS.name, [new]) == ([new], 0, 0)


def test_a_second_erasure_waits_for_the_writers_again():
    forgotten = Forgotten()
    forgotten.add("ann", 100)
    forgotten.sort_out(JUDGEMENTS.name, [record("ann", None)])
    forgotten.add("ann", 200)
    assert forgotten.sort_out(JUDGEMENTS.name, [record("ann")]) == ([], 0, 1)


def test_an_event_from_before_is_told_by_the_brokers_clock():
    forgotten = Forgotten()
    forgotten.add("ann", 100)
    assert [forgotten.is_old("ann", record("ann", at=at)) for at in (99, 100, 101)] == [True, False, False]
    assert not forgotten.is_old("ann", record("ann", at=99, kind=0)), "a producer's clock tells nothing"
    assert not forgotten.is_old("bob", record("bob", at=99))


def test_tombstones_are_told_from_empty_records():
    """A record without key and value is no tombstone: nobody knows of whom, so it is unusable as before."""
    empty, tombstone, blank = record(None, None), record("ann", None), record("ann", b"")
    for forgotten in (Forgotten(), Forgotten()):
        assert forgotten.sort_out(BEHAVIOUR_EVENTS.name, [empty, tombstone, blank]) == ([empty, blank], 1, 0)
        forgotten.add("ann", 1)


def test_memory_is_bounded_and_ends_with_the_partitions():
    forgotten = Forgotten(most=3)
    for n in range(10):
        forgotten.add(f"u{n}", 100)
    assert len(forgotten) == 3
    assert not forgotten.is_old("u0", record("u0", at=1))
    assert forgotten.is_old("u9", record("u9", at=1))
    forgotten.clear()
    assert not forgotten.is_old("u9", record("u9", at=1))
