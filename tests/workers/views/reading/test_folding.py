"""What the views make of records: tables and figures, in batches of any size."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from schemas.topics import CATALOGUE, JUDGEMENTS, KNOWLEDGE_REQUESTS, KNOWLEDGE_UPDATES, RECOMMENDATIONS
from tests.workers.views.reading.sent import (
    T0,
    changed,
    item,
    judgement,
    letter,
    recommendation,
    record,
    request,
    state,
    update,
)
from workers.views.reading import folding, tables
from workers.views.reading.folding import READ, LiveRecord, ViewsFold
from workers.views.reading.recent import Recent
from workers.views.reading.tables import KeptEntry, Tables

OF_USERS = (RECOMMENDATIONS.name, KNOWLEDGE_REQUESTS.name, KNOWLEDGE_UPDATES.name, JUDGEMENTS.name)


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Tables]:
    made = Tables(tmp_path / "console")
    yield made
    made.close()


@pytest.fixture
def recent() -> Recent:
    return Recent()


@pytest.fixture
def fold(held: Tables, recent: Recent) -> ViewsFold:
    return ViewsFold(held, recent)


def lists(held: Tables, user: str = "u1") -> list[list[str]]:
    return [one.shows for one in tables.lists_in(held.read(tables.SHOWN, user.encode()))]


def test_the_newest_lists_are_kept(fold, held):
    for number in range(tables.LISTS + 2):
        fold.fold([record(recommendation(items=(f"i{number}",)))])
    assert lists(held) == [["i2"], ["i3"], ["i4"]]


def test_events_are_compared_with_the_last_list_before_them(fold, recent):
    fold.fold([changed("u1", state("i9")), record(recommendation(items=("i1", "i2"), count=1))])
    assert recent.quality is None, "the first state that is read holds old events"
    # Behaviour alone would have shown i2, i3. The list that event 2 itself causes came before its state.
    fold.fold([record(recommendation(items=("i5",), count=2))])
    fold.fold([changed("u1", state("i9", "i2"))])
    found = recent.quality
    assert (found.n, found.served, found.reference) == (1, pytest.approx(1 / math.log2(3)), 1.0)
    # Two events in one state; the second list shows what the first showed, so it stands for both.
    fold.fold([record(recommendation(items=("i5",), count=3)), changed("u1", state("i9", "i2", "i5", "i3"))])
    found = recent.quality
    assert found.n == 3
    assert found.served == pytest.approx((1 / math.log2(3) + 1.0 + 0.0) / 3)
    assert found.reference == pytest.approx((1.0 + 0.0 + 1 / math.log2(3)) / 3)
    # A state that is sent again, and a user without a list, add nothing.
    fold.fold([changed("u1", state("i9", "i2", "i5", "i3")), changed("u2", state("i1"))])
    fold.fold([changed("u2", state("i1", "i2"))])
    assert recent.quality.n == 3


def test_batches_of_any_size_give_the_same(tmp_path):
    sent = [record(recommendation(items=(f"i{n % 4}", f"i{n % 3}"), version=n // 2, count=n)) for n in range(9)]
    sent += [record(request(version=n)) for n in range(1, 12)] + [record(update(version=n)) for n in range(1, 11)]
    sent += [record(judgement("u1", n, n + 1)) for n in range(60)]
    sent += [changed("u1", state(*(f"i{n}" for n in range(n + 1)), cusum=n / 10)) for n in range(80)]
    rows = []
    for size in (1, 7, len(sent)):
        held, recent = Tables(tmp_path / str(size)), Recent()
        fold = ViewsFold(held, recent)
        for begin in range(0, len(sent), size):
            fold.fold(sent[begin : begin + size])
        rows.append([held.read(kind, b"u1") for kind in tables.OF_USER])
        assert all(rows[-1])
        assert fold.users == 1
        assert len(tables.refreshes_in(held.read(tables.MADE, b"u1"))) == tables.REFRESHES
        assert len(tables.margins_in(held.read(tables.JUDGED, b"u1"))) == tables.MARGINS
        assert len(tables.steps_in(held.read(tables.STEPS, b"u1"))) == tables.KEPT_STEPS
        held.close()
    assert rows[0] == rows[1] == rows[2]


def test_a_list_that_shows_the_same_takes_the_place_of_the_one_before(fold, held):
    fold.fold([record(recommendation(items=("i1",), count=1)), record(recommendation(items=("i2",), count=2)),
               record(recommendation(items=("i2",), count=3))])
    assert [(one.shows, one.count) for one in tables.lists_in(held.read(tables.SHOWN, b"u1"))] == [
        (["i1"], 1), (["i2"], 3)]


def test_a_request_and_its_update_meet_in_either_order(fold, held):
    fold.fold([record(update(version=1)), record(request(version=2))])
    fold.fold([record(request(version=1)), record(update(version=2))])
    found = tables.refreshes_in(held.read(tables.MADE, b"u1"))
    assert [(version, one.asked is not None, one.made is not None) for version, one in found.items()] == [
        (1, True, True), (2, True, True)]


def test_a_record_sent_twice_counts_once(fold, held):
    for _ in range(2):
        fold.fold([record(judgement("u1", 1, 2)), record(update()), changed("u1", state("i1", "i2"))])
    assert [one.count for _, one in tables.margins_in(held.read(tables.JUDGED, b"u1"))] == [1, 2]
    assert list(tables.refreshes_in(held.read(tables.MADE, b"u1"))) == [1]
    assert [one.count for one in tables.steps_in(held.read(tables.STEPS, b"u1"))] == [2]


def test_the_statistics_of_each_state_are_kept(fold, held):
    fold.fold([changed("u1", state("i1", cusum=0.5, trust=0.75)),
               changed("u1", state("i1", "i2", cusum=1.5, trust=0.5, log_wealth=[0.0, 0.0, 3.0]))])
    first, second = tables.steps_in(held.read(tables.STEPS, b"u1"))
    assert (first.count, first.drift, first.log_wealth, first.trust) == (1, 0.5, 0.0, 0.75)
    assert (second.count, second.drift, second.trust) == (2, 1.5, 0.5)
    assert second.log_wealth == pytest.approx(1.996, abs=1e-3)  # log of the mean of 1, 1, e³


def test_an_erased_user_is_gone(fold, held, recent):
    fold.fold([record(recommendation()), record(request()), record(update()), record(judgement("u1", 1)),
               changed("u1", state("i1")), changed("u2", state("i1"))])
    assert [one.user_id for one in recent.takers("i1")] == ["u1", "u2"]
    fold.fold([changed("u1", None), *(LiveRecord(topic, 9, T0 + 10, b"u1", None) for topic in OF_USERS)])
    assert [held.read(kind, b"u1") for kind in tables.OF_USER] == [None] * len(tables.OF_USER)
    assert [one.user_id for one in recent.takers("i1")] == ["u2"]
    assert fold.users == 1
    fold.fold([changed("u1", None), changed("u2", None), changed("u2", state("i2")), changed("u3", state("i2"))])
    assert fold.users == 2
    assert held.read(tables.STATE, b"u2")


@pytest.mark.parametrize(("topic", "kind", "message"), [
    (RECOMMENDATIONS.name, tables.SHOWN, recommendation()), (KNOWLEDGE_UPDATES.name, tables.MADE, update())])
def test_a_tombstone_removes_what_came_before_it(fold, held, topic, kind, message):
    fold.fold([record(message), LiveRecord(topic, 1, T0 + 10, b"u1", None)])
    assert held.read(kind, b"u1") is None
    fold.fold([record(message)])
    fold.fold([LiveRecord(topic, 1, T0 + 10, b"u1", None), record(message)])
    assert held.read(kind, b"u1")


@pytest.mark.parametrize("first", [KNOWLEDGE_REQUESTS.name, KNOWLEDGE_UPDATES.name])
def test_a_user_who_came_back_keeps_what_is_new_whichever_topic_is_read_first(fold, held, first):
    """At a start, the topics are read in any order."""
    old, new = T0, T0 + 100
    topics = {
        KNOWLEDGE_REQUESTS.name: [
            record(request(version=1, requested_at=old)), LiveRecord(KNOWLEDGE_REQUESTS.name, 9, T0 + 50, b"u1", None),
            record(request(version=1, requested_at=new))],
        KNOWLEDGE_UPDATES.name: [
            record(update(version=2, generated_at=old)), LiveRecord(KNOWLEDGE_UPDATES.name, 9, T0 + 50, b"u1", None),
            record(update(version=1, generated_at=new))]}
    for name in sorted(topics, key=lambda name: name != first):
        for one in topics[name]:
            fold.fold([one])
    found = tables.refreshes_in(held.read(tables.MADE, b"u1"))
    assert list(found) == [1]
    assert (found[1].asked.requested_at, found[1].made.generated_at) == (new, new)


@pytest.mark.parametrize("value", [b"", b"{", b"null", b"[]", b"{}", b'"\xff"', b"\xc1", b"9" * 5000, b"[" * 100_000])
@pytest.mark.parametrize("topic", READ)
def test_what_is_no_such_message_is_counted_and_left_out(fold, held, topic, value):
    good = [record(recommendation()), record(update()), record(judgement("u1", 1)), changed("u1", state("i1")),
            record(letter()), record(request()), record(item())]
    fold.fold([*good, LiveRecord(topic, 5, T0, b"bad", value), LiveRecord(topic, 6, T0, None, value)])
    assert fold.unreadable[topic] == 2
    assert [held.read(kind, b"bad") for kind in tables.OF_USER] == [None] * len(tables.OF_USER)
    assert all(held.read(kind, b"u1") for kind in tables.OF_USER)


def test_dead_letters_are_bounded_in_number(fold, held, monkeypatch):
    monkeypatch.setattr(folding, "LETTERS", 3)
    sent = [record(letter(offset)) for offset in range(5)]
    fold.fold(sent)
    assert [one.offset for one in fold.letters.values()] == [2, 3, 4]
    assert fold.letters_seen == 5
    assert [held.read(tables.LETTER, tables.pack_number(one.offset)) is None for one in sent] == [
        True, True, False, False, False]


def test_dead_letters_are_bounded_in_bytes(fold, held, monkeypatch):
    monkeypatch.setattr(folding, "LETTER_BYTES", 10_000)
    for offset in range(5):
        fold.fold([record(letter(offset, value="A" * 4000))])
    assert len(fold.letters) == 2
    assert all(len(one.value) <= folding.HEAD_OF_VALUE for one in fold.letters.values())
    newest = list(fold.letters)[-1]
    assert b"A" * 4000 in (held.read(tables.LETTER, tables.pack_number(newest)) or b"")


def test_tables_begin_empty(tmp_path):
    first = Tables(tmp_path / "console")
    ViewsFold(first, Recent()).fold([record(recommendation())])
    del first
    again = Tables(tmp_path / "other")
    assert again.read(tables.SHOWN, b"u1") is None
    again.close()
    assert not (tmp_path / "other").exists()


def test_what_an_earlier_process_left_is_removed(tmp_path):
    (tmp_path / "console").mkdir()
    (tmp_path / "console" / "CURRENT").write_text("damaged")
    held = Tables(tmp_path / "console")
    held.write([(tables.STATE, b"u1", b"x")])
    assert held.read(tables.STATE, b"u1") == b"x"
    held.close()


def test_ids_that_are_no_text_are_kept_apart(fold, held):
    odd = [b"u\x00", b"u", b"\xed\xa0\x80", b"\xff", b""]
    fold.fold([replace(record(recommendation(items=(f"i{n}",))), key=key) for n, key in enumerate(odd)])
    for number, key in enumerate(odd):
        assert tables.lists_in(held.read(tables.SHOWN, key))[0].shows == [f"i{number}"]


def test_the_catalogue_is_kept_by_item(fold, held):
    fold.fold([record(item("i1", title="Up", attributes=["a", "b"], price=2.5, labels=["new"], available=False)),
               record(item("i2", title="Heat", attributes={"brand": "x"}, text="long"))])
    one, two = (tables.entry_in(held.read(tables.ENTRY, key)) for key in (b"i1", b"i2"))
    assert one == KeptEntry("Up", "", {"attributes": ["a", "b"], "labels": ["new"], "price": 2.5}, False)
    assert two == KeptEntry("Heat", "long", {"brand": "x"}, True)
    fold.fold([LiveRecord(CATALOGUE.name, 9, T0, b"i2", None),
               replace(record(item("i1", title="Down")), key=b"other")])
    assert held.read(tables.ENTRY, b"i2") is None
    assert tables.entry_in(held.read(tables.ENTRY, b"i1")) == one
    assert fold.unreadable == {CATALOGUE.name: 1}
