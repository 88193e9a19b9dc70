from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from kafka.partitioner.default import murmur2

from streams.service.outbox import partition_of


@given(st.binary(max_size=40), st.integers(1, 64))
def test_a_key_is_on_the_partition_where_kafka_python_puts_it(key: bytes, partitions: int) -> None:
    assert partition_of(key, partitions) == (murmur2(key) & 0x7FFFFFFF) % partitions
