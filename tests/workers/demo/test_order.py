from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.demo.order import Order

USERS = st.lists(st.integers(0, 5), max_size=80)


@given(USERS, st.integers(0, 4), st.integers(1, 90), st.randoms(use_true_random=False))
def test_every_row_is_sent_once_in_user_order_and_within_the_limits(
    users: list[int], per_user: int, lookahead: int, random: object,
) -> None:
    order = Order(users, per_user, lookahead)
    unanswered: Counter[int] = Counter()
    sent: list[int] = []
    while order:
        row = order.peek()
        busy = [user for user, count in unanswered.items() if count]
        if row is None or (busy and random.random() < 0.4):  # type: ignore[attr-defined]
            user = random.choice(busy)  # type: ignore[attr-defined]
            unanswered[user] -= 1
            order.answered(user)
            continue
        assert order.take() == row
        unanswered[users[row]] += 1
        assert not per_user or unanswered[users[row]] <= per_user
        oldest = min(set(range(len(users))) - set(sent))
        assert row < oldest + lookahead
        sent.append(row)
    assert sorted(sent) == list(range(len(users)))
    for user in set(users):
        rows = [row for row in sent if users[row] == user]
        assert rows == sorted(rows)
    assert order.peek() is None


@pytest.mark.parametrize("per_user", [0, 99])
def test_without_a_limit_rows_come_in_time_order(per_user: int) -> None:
    order = Order([1, 1, 2, 1, 3], per_user)
    assert [order.take() for _ in range(5)] == [0, 1, 2, 3, 4]


def test_other_users_overtake_a_waiting_user() -> None:
    order = Order([1, 1, 1, 2, 3], 1, lookahead=4)
    assert [order.take(), order.take()] == [0, 3]
    assert order.take() == 4  # row 0 is sent, so the lookahead window moves on by one
    assert order.peek() is None
    order.answered(1)
    assert order.take() == 1
