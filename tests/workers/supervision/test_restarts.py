from hypothesis import given
from hypothesis import strategies as st

from workers.supervision.restarts import RestartPolicy, RoleRun

POLICY = RestartPolicy(limit=10, settled_s=180.0)


Lasts = tuple[float, float | None, str]


def follow(lasts: list[Lasts], policy: RestartPolicy = POLICY) -> tuple[list[RoleRun], str, float]:
    """Runs one after the other as the policy has it, each (seconds it lasts, seconds until ready, waits for).

    Returns the runs, the last decision and the time of it.
    """
    runs: list[RoleRun] = []
    now, what = 0.0, ""
    for seconds, ready, waits_for in lasts:
        runs.append(RoleRun(now, None if ready is None else now + ready, now + seconds, waits_for))
        decision = policy.decide(runs)
        what, now = decision.what, now + seconds + decision.after_s
        if what == "give up":
            break
    return runs, what, now


def test_a_start_that_takes_longer_than_ten_seconds_and_fails_ends() -> None:
    """It went on for ever: five failures never fell into one minute, 107 restarts in 30 minutes."""
    runs, what, now = follow([(16.0, None, "")] * 200)
    assert what == "give up"
    assert len(runs) == POLICY.limit
    assert now < 600


def test_a_loop_of_stalls_ends() -> None:
    runs, what, _ = follow([(66.0, 4.0, "")] * 200)  # ready after 4 s, then the watchdog's 60 s
    assert what == "give up"
    assert len(runs) == POLICY.limit


def test_good_work_ends_the_row() -> None:
    runs, what, _ = follow([(5.0, None, "")] * 9 + [(300.0, 4.0, "")] + [(5.0, None, "")] * 9)
    assert what == "restart"
    assert POLICY.failures(runs) == 9
    assert follow([(400.0, 4.0, "")] * 100)[1] == "restart"  # a crash every few minutes is served in between


def test_waiting_is_not_failing() -> None:
    runs, what, now = follow([(1.0, None, "broker")] * 500)
    assert (what, POLICY.failures(runs)) == ("wait", 0)
    assert now / 500 > 0.9 * POLICY.longest_wait_s  # at the longest back-off, not in a busy loop
    runs, what, _ = follow([*[(1.0, None, "")] * 9, *[(1.0, None, "broker")] * 20, (1.0, None, "")])
    assert what == "give up"  # and it does not hide failures


def test_the_back_off_grows_to_its_longest() -> None:
    pauses = [POLICY.pause(tries) for tries in range(1, 12)]
    assert pauses[:4] == [0.5, 1.0, 2.0, 4.0]
    assert pauses == sorted(pauses)
    assert pauses[-1] == POLICY.longest_s


run = st.tuples(st.floats(0.1, 1000), st.one_of(st.none(), st.floats(0.0, 900)), st.sampled_from(["", "", "broker"]))


@given(st.lists(run, min_size=1, max_size=60))
def test_it_gives_up_after_exactly_the_limit_of_failures_in_a_row(lasts: list[Lasts]) -> None:
    runs, what, _ = follow([(s, None if r is None else min(r, s), w) for s, r, w in lasts])
    row = longest = 0
    for one in runs:
        if one.waits_for:
            continue
        row = 0 if one.ready is not None and one.ended - one.ready >= POLICY.settled_s else row + 1
        longest = max(longest, row)
    assert (what == "give up") == (longest >= POLICY.limit and not runs[-1].waits_for)
