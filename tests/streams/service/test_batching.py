"""Batches are made of the source topics only, and commits never pass what is not settled."""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from types import SimpleNamespace
from typing import Any

import pytest
from faust.transport.drivers.aiokafka import Consumer
from faust.types import TP
from hypothesis import given
from hypothesis import strategies as st

from streams.service.batching import BatchConsumer, fold_records


def test_only_source_topics_are_folded() -> None:
    records = [SimpleNamespace(offset=n, timestamp=n, timestamp_type=0) for n in range(5, 9)]
    source, changelog, empty = TP("events", 0), TP("table-changelog", 0), TP("events", 1)
    out = fold_records({source: records, changelog: records, empty: []}, frozenset({"events"}))
    assert out[changelog] is records
    assert out[empty] == []
    (batch,) = out[source]
    assert (batch.offset, batch.partition, batch.value) == (8, 0, records)


class Ledger(BatchConsumer):
    """The consumer's account of offsets without a broker."""

    def __init__(self) -> None:
        self._delivered = defaultdict(deque)
        self._settled = defaultdict(set)
        self._acked = defaultdict(list)
        self._acked_index = defaultdict(set)
        self._read_offset = defaultdict(lambda: None)
        self.app = SimpleNamespace(batched_topics=frozenset({"events"}))
        self.settled = 0
        self._buffered_partitions = set()
        self._positioned = True


@given(st.permutations([4, 9, 10, 30]))
def test_a_commit_never_passes_what_is_not_settled(order: list[int]) -> None:
    ledger, tp = Ledger(), TP("events", 0)
    ledger._delivered[tp].extend([4, 9, 10, 30])
    done: set[int] = set()
    committed = 0
    for offset in order:
        ledger.settle(SimpleNamespace(tp=tp, offset=offset, ack=lambda consumer: True))  # type: ignore[arg-type]
        done.add(offset)
        committed = ledger._new_offset(tp) or committed
        first_open = min({4, 9, 10, 30} - done, default=31)
        assert committed <= first_open
        assert committed == max([end + 1 for end in (4, 9, 10, 30) if end < first_open], default=0)
    assert committed == 31
    assert ledger.unsettled == 0


def test_nothing_of_the_sources_is_delivered_before_they_are_in_position(monkeypatch: pytest.MonkeyPatch) -> None:
    ledger, source, changelog = Ledger(), TP("events", 0), TP("changelog", 0)
    asked = []

    async def fetch(self: BatchConsumer, active: set[TP], timeout: float) -> dict[TP, list[Any]]:
        asked.append(active)
        return {tp: [SimpleNamespace(offset=4, timestamp=0, timestamp_type=0)] for tp in active}

    monkeypatch.setattr(Consumer, "_getmany", fetch)

    async def seek() -> None:
        assert await ledger._getmany({source}, 0.0) == {}
        assert set(await ledger._getmany({source, changelog}, 0.0)) == {changelog}

    ledger.positions = SimpleNamespace(seek=seek)  # type: ignore[assignment]
    ledger._delivered[source].append(4)  # before: it is delivered again
    asyncio.run(ledger.perform_seek())
    assert not ledger._delivered
    assert set(asyncio.run(ledger._getmany({source, changelog}, 0.0))) == {source, changelog}
    assert asked == [{changelog}, {source, changelog}]


def test_what_faust_drops_as_read_before_holds_no_commit_up(monkeypatch: pytest.MonkeyPatch) -> None:
    ledger, tp = Ledger(), TP("events", 0)
    monkeypatch.setattr(Consumer, "_to_message", lambda self, tp, record: record)
    ledger._read_offset[tp] = 9
    for offset in (4, 9, 12):
        ledger._to_message(tp, SimpleNamespace(offset=offset))
    assert list(ledger._delivered[tp]) == [9, 12]
