"""Where to read on, given what was committed and what the log holds now."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.service.positions import Life, Position, decide, explain

A, B = "bNekjn0uSLGj9dIkrhKmAw", "jyan6eY0RBCYgpLBU/0ppw"  # topic ids; base64 has slashes


@pytest.mark.parametrize(("committed", "kept", "topic_id", "start", "end", "processed", "wanted"), [
    (40, Life(A), A, 0, 90, True, Position(40, Life(A), "resumed")),
    (90, Life(A), A, 0, 90, True, Position(90, Life(A), "resumed")),
    (0, Life(A), A, 0, 0, False, Position(0, Life(A), "resumed")),
    (40, None, A, 0, 90, True, Position(40, Life(A), "resumed")),  # committed by an older Freshet
    (40, Life(A), "", 0, 90, True, Position(40, Life(A), "resumed")),  # the broker tells no ids
    (40, Life(A, 2), A, 0, 90, True, Position(40, Life(A, 2), "resumed")),
    (None, None, A, 7, 90, False, Position(7, Life(A), "started")),
    (None, None, A, 0, 0, True, Position(0, Life(A), "started")),
    (None, None, A, 7, 90, True, Position(7, Life(A), "forgotten")),
    (400, Life(A), A, 0, 0, True, Position(0, Life(A, 1), "cut")),
    (400, Life(A, 1), A, 3, 399, True, Position(3, Life(A, 2), "cut")),
    (400, None, "", 0, 12, True, Position(0, Life("", 1), "cut")),
    (40, Life(A), A, 50, 90, True, Position(50, Life(A), "expired", 10)),
    (40, Life(A), A, 90, 90, True, Position(90, Life(A), "expired", 50)),
    (40, Life(A, 3), B, 0, 90, True, Position(0, Life(B), "recreated")),
    (400, Life(A), B, 0, 12, True, Position(0, Life(B), "recreated")),
])
def test_decision(committed, kept, topic_id, start, end, processed, wanted):
    assert decide(committed, kept, topic_id, start, end, processed=processed) == wanted


@given(st.none() | st.integers(0, 99), st.none() | st.builds(Life, st.sampled_from(["", A, B]), st.integers(0, 3)),
       st.sampled_from(["", A, B]), st.integers(0, 99), st.integers(0, 99), st.booleans())
def test_it_reads_what_is_there_skips_nothing_and_finds_nothing_the_next_time(
        committed, kept, topic_id, start, length, processed):
    end = start + length
    found = decide(committed, kept, topic_id, start, end, processed=processed)
    assert start <= found.offset <= end
    assert found.offset in (start, committed)
    assert found.missed == max(0, start - (start if committed is None else committed)) or found.finding != "expired"
    assert bool(explain("t", 0, committed, end, found)) == (found.finding not in ("resumed", "started"))
    if found.finding in ("cut", "recreated"):  # another log: states must not compare their offsets with its
        assert found.life != (kept or Life(topic_id))
    again = decide(found.offset, Life.parse(str(found.life)), topic_id, start, end, processed=processed)
    assert again == Position(found.offset, found.life, "resumed")


@given(st.sampled_from(["", A, B]), st.integers(0, 10**6))
def test_what_is_committed_with_an_offset_is_read_back(topic_id, cut):
    life = Life(topic_id, cut)
    assert Life.parse(str(life)) == life
    assert 0 <= life.token < 2**63
    assert (life.token == 0) == (life == Life())


@given(st.text(max_size=12) | st.none())
def test_metadata_of_others_is_no_life_or_a_life(text):
    life = Life.parse(text)
    assert life is None or isinstance(life.cut, int)
