"""What a worker makes of a batch with tombstones in it."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from workers.runtime.loop import split_tombstones


@dataclass(frozen=True)
class Record:
    """As confluent-kafka hands one over."""

    at: int
    user: bytes | None
    content: bytes | None
    part: int = 0

    def key(self) -> bytes | None:
        return self.user

    def value(self) -> bytes | None:
        return self.content

    def offset(self) -> int:
        return self.at

    def partition(self) -> int:
        return self.part


def test_a_tombstone_ends_what_came_before_it_and_nothing_else():
    first, other, end, later = Record(0, b"ann", b"1"), Record(1, b"bob", b"2"), Record(2, b"ann", None), \
        Record(3, b"ann", b"3")
    assert split_tombstones([first, other, end, later]) == (["ann"], [other, later])
    assert split_tombstones([Record(0, b"ann", None), later]) == (["ann"], [later]), "also the very first record"


def test_a_record_without_key_and_value_stays_and_is_unreadable():
    empty, blank = Record(0, None, None), Record(1, b"ann", b"")
    assert split_tombstones([empty, blank]) == ([], [empty, blank])


@given(st.lists(st.tuples(st.sampled_from([b"a", b"b"]), st.booleans(), st.integers(0, 1)), max_size=12))
def test_each_user_keeps_what_follows_the_last_tombstone(drawn):
    records = [Record(at, user, None if gone else b"%d" % at, part) for at, (user, gone, part) in enumerate(drawn)]
    users, kept = split_tombstones(records)
    assert set(users) == {one.user.decode() for one in records if one.content is None}
    for user in (b"a", b"b"):
        for part in (0, 1):
            own = [one for one in records if (one.user, one.part) == (user, part)]
            last = max((n for n, one in enumerate(own) if one.content is None), default=-1)
            assert [one for one in kept if (one.user, one.part) == (user, part)] == own[last + 1:]
