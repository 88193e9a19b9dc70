from hypothesis import given
from hypothesis import strategies as st

from schemas.experiment import arm, position

USERS = [f"user-{number}" for number in range(20_000)]
names = st.text(max_size=40)


@given(user=st.text(max_size=100), name=names.filter(bool), low=st.floats(0, 0.99), high=st.floats(0, 0.99))
def test_an_arm_is_stable_and_a_larger_control_group_keeps_its_members(user, name, low, high):
    low, high = sorted((low, high))
    assert arm(user, name, low) == arm(user, name, low)
    if arm(user, name, low) == "control":
        assert arm(user, name, high) == "control"
    assert arm(user, name, 0.0) == "treatment"
    assert arm(user, "", high) == ""


@given(user=st.text(max_size=100), name=names)
def test_positions_are_in_the_unit_interval(user, name):
    assert 0 <= position(user, name) < 1


def test_known_positions_never_change():
    # A change would move users to other arms in the middle of a running experiment.
    assert [round(position("42", name), 9) for name in ("a", "b")] == [0.712373329, 0.869296186]


def test_positions_are_uniform():
    tenths = [0] * 10
    for user in USERS:
        tenths[int(10 * position(user, "spring"))] += 1
    # χ² with 9 degrees of freedom exceeds 27.9 with probability 0.001.
    assert sum((count - 2000) ** 2 / 2000 for count in tenths) < 27.9


def test_two_names_split_independently():
    for first, second in (("spring", "summer"), ("a", "aa"), ("x1", "x2")):
        both = sum(arm(user, first, 0.5) == arm(user, second, 0.5) == "control" for user in USERS)
        in_first = sum(arm(user, first, 0.5) == "control" for user in USERS)
        in_second = sum(arm(user, second, 0.5) == "control" for user in USERS)
        # Under independence the variance of the overlap is n/16; 3.3 standard deviations: probability 0.001.
        assert abs(both - in_first * in_second / len(USERS)) < 3.3 * (len(USERS) / 16) ** 0.5
