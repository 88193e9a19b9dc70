"""The catalogue as it is: what came later, in any order and any number of times, on the items of any fit."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.catalogue.item import CatalogueItem
from schemas.codec import decode, encode
from schemas.errors import PoisonError
from workers.catalogue.reader import Versions, read_entry
from workers.catalogue.view import Catalogue, Entry

FITTED = ["a", "b", "c"]
NAMES = st.sampled_from([*FITTED, "x", "y"])
ENTRIES = st.builds(
    lambda name, version, text, there, gone: Entry.gone(name, version) if gone else Entry(
        name, version, text, text, available=there),
    NAMES, st.integers(1, 30), st.sampled_from(["one", "two"]), st.booleans(), st.booleans())
COMING = st.lists(ENTRIES, max_size=20, unique_by=lambda entry: entry.version)


def catalogue() -> Catalogue:
    return Catalogue(FITTED, ["A", "B", "C"])


def state(of: Catalogue) -> dict[str, tuple[Entry, bool]]:
    return {item: (of.entries[row], bool(of.available[row])) for item, row in of.rows.items()}


def item(name: str = "x", **fields: object) -> CatalogueItem:
    return CatalogueItem(item_id=name, **fields)  # type: ignore[arg-type]


@given(COMING)
def test_rows_stay_and_the_newest_entry_counts(entries: list[Entry]) -> None:
    known = catalogue()
    for entry in entries:
        before = list(known.items)
        known.apply([entry])
        assert known.items[: len(before)] == before
    assert known.items[:3] == FITTED
    assert len(known.items) == len(known.entries) == len(known.available) == len(set(known.items))
    for name in known.items:
        came = [entry for entry in entries if entry.item_id == name]
        if came:  # one that was removed first has no row
            newest = max(came, key=lambda entry: entry.version)
            row = known.rows[name]
            assert known.entries[row].version == newest.version
            assert bool(known.available[row]) == newest.available


@given(COMING, st.integers(1, 5))
def test_it_does_not_matter_how_entries_are_batched_or_that_they_come_again(entries: list[Entry], size: int) -> None:
    whole, parts = catalogue(), catalogue()
    whole.apply(entries)
    for begin in range(0, len(entries), size):
        parts.apply(entries[begin : begin + size])
    assert state(whole) == state(parts)
    assert parts.apply(entries) == []
    assert state(whole) == state(parts)


@given(COMING)
def test_another_fit_keeps_what_came(entries: list[Entry]) -> None:
    known = catalogue()
    known.apply(entries)
    other = known.rebased(["c", "x", "a"], ["C", "X", "A"])
    assert other.items[:3] == ["c", "x", "a"]
    for name, row in known.rows.items():
        if known.entries[row].version and not known.entries[row].removed:
            assert other.entries[other.rows[name]] == known.entries[row]
        if known.entries[row].version and name in other.rows:
            assert other.available[other.rows[name]] == known.available[row]


def test_what_is_new_or_reads_otherwise_is_said() -> None:
    known = catalogue()
    assert known.apply([Entry("x", 1, "X", "X"), Entry("b", 2, "B", "B", available=False)]) == [3]
    assert known.apply([Entry("b", 3, "Bee", "Bee")]) == [1]
    assert known.apply([Entry("x", 4, "X", "X", labels=("new",), price=2.0)]) == []
    assert known.unavailable().tolist() == []
    assert (known.entries[3].labels, known.entries[3].price) == (("new",), 2.0)


def test_a_removed_item_keeps_its_row_and_text_and_may_come_back() -> None:
    known = catalogue()
    assert known.apply([Entry.gone("b", 1), Entry.gone("never seen", 2)]) == []
    assert known.items == FITTED
    assert known.unavailable().tolist() == [1]
    assert (known.entries[1].text, known.entries[1].removed) == ("B", True)
    assert known.apply([Entry("never seen", 1, "late", "late")]) == []  # the tombstone is newer
    assert known.apply([Entry("never seen", 3, "again", "again")]) == [3]
    assert known.apply([Entry("b", 5, "B", "B")]) == []
    assert bool(known.available[1])


def test_a_mask_in_use_is_not_changed() -> None:
    known = catalogue()
    mask = known.available
    known.apply([replace(known.entries[0], version=1, available=False)])
    assert mask.all()
    assert not known.available.all()


def test_a_message_becomes_an_entry() -> None:
    sent = item(title=" Red\tshoe ", attributes=["brand", "shoes"], text="Very red.", labels="new", price="9.5",
                available=False)
    entry = read_entry(b"x", encode(sent), 7)
    assert entry == Entry("x", 7, "Red shoe", "Red shoe. brand, shoes. Very red.", False, ("new",), 9.5)
    assert read_entry(b"x", None, 8) == Entry.gone("x", 8)
    assert decode(CatalogueItem, encode(sent)) == sent


@pytest.mark.parametrize(("key", "value", "why"), [
    (None, encode(item()), "no key"), (b"", None, "no key"), (b"\xff", None, "UTF-8"), (b"y", encode(item()), "equal"),
    (b"x", b"", "empty value"), (b"x", b"{}", "item_id"), (b"x", b'{"item_id": "x", "price": -1}', "price"),
    (b"x", b'{"item_id": "x", "available": "perhaps"}', "available"),
    (b"x", b'{"item_id": "x", "labels": {}}', "labels"),
    (b"x", b'{"item_id": "x", "price": 1e999}', "price"), (b"x", b'{"item_id": null}', "item_id"),
    (b"x", b'{"item_id": "x", "schema_version": 2}', "newer"),
])
def test_what_cannot_be_used_has_a_reason(key: bytes | None, value: bytes | None, why: str) -> None:
    with pytest.raises(PoisonError, match=why):
        read_entry(key, value, 1)


@given(st.lists(st.integers(0, 3).map(lambda step: 1_700_000_000_000 + step), max_size=30).map(sorted))
def test_versions_rise_with_every_record_and_with_time(times: list[int]) -> None:
    versions = Versions()
    given_ = [versions.of(0, at) for at in times]
    assert given_ == sorted(set(given_))
    assert all(1000 * at <= version < 1000 * at + 1000 for at, version in zip(times, given_, strict=True))
