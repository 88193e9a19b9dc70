"""What is wrong and what to do, from how the parts are; rates from samples."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from workers.supervision.health import Health, RoleHealth
from workers.views.reading.status import _CURES, GroupSamples, Offsets, problems
from workers.views.summary import Minute, RoleState, Spread

OPERATIONS = (Path(__file__).parents[4] / "docs" / "operations.md").read_text()
OK = RoleState("ranking", "ok", "", 0, 0.0, 10.0, 0, 0, "")
GOOD = Health("ok", (), (RoleHealth("ranking", "ok", ""),))
QUICK = Spread(100, 1.0, 2.0, 3.0)


def found(roles=(OK,), health=GOOD, minutes=(), freshness=QUICK, broker="", model=""):
    return list(problems(roles, health, minutes, freshness, broker, model))


def test_nothing_is_wrong():
    assert found() == []
    assert found(health=None, roles=()) == []
    assert found(roles=[replace(OK, state="elsewhere", reason="not on this home")]) == []
    assert found(minutes=[Minute(0.0, letters=5), *(Minute(60.0 * n) for n in range(1, 11))]) == []  # long ago
    assert found(roles=[replace(OK, lag=5000, per_s=500.0)]) == []  # ten seconds' work


@pytest.mark.parametrize(("what", "words"), [
    ({"broker": "Connection refused"}, "Connection refused"),
    ({"roles": [replace(OK, state="crashed", reason="failed 3 times")]}, "ranking: failed 3 times"),
    ({"roles": [replace(OK, state="hung")]}, "ranking: hung"),
    ({"roles": [replace(OK, state="waiting", reason="waiting for the store")]}, "store"),
    ({"roles": [replace(OK, lag=90_000, per_s=100.0)]}, "90,000 records behind"),
    ({"roles": [replace(OK, lag=90_000, per_s=0.0)]}, "finishes 0 a second"),
    ({"health": replace(GOOD, reasons=("the supervisor (process 1) has written nothing",))}, "the supervisor"),
    ({"model": "no such file"}, "no such file"),
    ({"minutes": [Minute(0.0, letters=3), Minute(60.0, letters=2)]}, "5 dead letters"),
    ({"freshness": Spread(9, 5.0, 90.0, 99.0), "minutes": [Minute(0.0, refreshes={"drift": 1})]}, "90 s"),
])
def test_each_fault_is_one_problem_with_a_cure_and_its_runbook(what, words):
    (one,) = found(**what)
    assert words in one.what
    assert one.cure
    assert f"### {one.section}\n" in OPERATIONS


def test_a_role_that_its_stack_reports_is_said_once():
    health = Health("crashed", ("ranking: failed",), (RoleHealth("ranking", "crashed", "failed"),))
    assert len(found(roles=[replace(OK, state="crashed", reason="failed")], health=health)) == 1


def test_every_state_of_a_role_has_a_cure():
    assert set(_CURES) == {"waiting", "starting", "stalled", "crashed", "hung"}


def test_rates_are_of_the_last_minute():
    samples = GroupSamples()
    assert samples.rate("end") is None
    for second in range(0, 200, 5):
        samples.add(Offsets(float(second), second, 2 * second + (1000 if second > 100 else 0)))
    assert samples.rate("committed") == 1.0
    assert samples.rate("end") == 2.0  # the jump was longer ago
    assert samples.samples[-1].lag == 195 + 1000
    samples.add(Offsets(200.0, 0, 0))  # the topic was created again
    assert samples.rate("end") == 0.0
