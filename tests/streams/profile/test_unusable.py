from hypothesis import given
from hypothesis import strategies as st

from streams.profile.unusable import FEWEST, WINDOW_S, UnusableShare


def test_the_share_is_that_of_the_last_minute() -> None:
    share = UnusableShare()
    assert share.note(0.0, FEWEST - 1, FEWEST - 1) == 0.0, "too few records"
    assert share.note(1.0, 101, 1) == 0.5
    assert share.note(WINDOW_S + 1.0, 0, 0) == 1 / 101, "the first batch is older than a minute"


@given(st.lists(st.tuples(st.floats(0, 50), st.integers(0, 300), st.floats(0, 1)), max_size=30))
def test_it_is_what_counting_all_of_the_last_minute_gives(batches: list[tuple[float, int, float]]) -> None:
    share, now, noted = UnusableShare(), 0.0, []
    for wait, records, bad_share in batches:
        now += wait
        noted.append((now, records, int(records * bad_share)))
        found = share.note(*noted[-1])
        recent = [(records, bad) for at, records, bad in noted if at >= now - WINDOW_S]
        total, bad = sum(records for records, _ in recent), sum(bad for _, bad in recent)
        assert found == (bad / total if total >= FEWEST else 0.0)
