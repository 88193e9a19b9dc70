from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.e2e.load import Measured, Users
from benchmarks.e2e.run import main, table
from tests.models import tiny
from tests.system.world import write_data


def test_users_act_on_their_own_later_events_first() -> None:
    users = Users({"ann": ["a", "b"], "bob": ["c"]}, {"ann": 5, "bob": 0}, ["p", "q"], seed=3)
    events = [users.next() for _ in range(40)]
    taken = {user: [event.item_id for event in events if event.user_id == user] for user in ("ann", "bob")}
    assert taken["ann"][:2] == ["a", "b"]
    assert taken["bob"][0] == "c"
    assert set(taken["ann"][2:]) | set(taken["bob"][1:]) == {"p", "q"}
    assert max(Counter(event.event_id for event in events).values()) == 1
    again = Users({"ann": ["a", "b"], "bob": ["c"]}, {}, ["p", "q"], seed=3)
    assert [again.next().item_id for _ in range(40)] == [event.item_id for event in events]


def test_quantiles_are_in_milliseconds_and_a_load_without_answers_has_none() -> None:
    load = Measured(50.0, waits=[0.01 * n for n in range(101)])
    assert load.quantiles(load.waits) == [500.0, 950.0, 990.0]
    assert load.quantiles([]) == []
    row = {"rate": 50.0, "ms": [], "drift_to_use_ms": []}
    assert "| d, embedded | 60 events/s | 50 | – | – | – | – |" in table(
        [{"data": "d", "broker": "embedded", "highest_rate": 60.0, "loads": [row]}])


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_running_stack_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
) -> None:
    for name, value in {
        "FRESHET_LLM_NAME": str(tiny.save(tmp_path / "llm")), "FRESHET_LLM_DEVICE": "cpu", "FRESHET_FIT_DIM": "16",
        "FRESHET_FIT_INSTRUCTIONS": "3", "FRESHET_FIT_CODES": "8", "FRESHET_FIT_PARTS": "on",
    }.items():
        monkeypatch.setenv(name, value)
    main(["--quick", "--data", str(write_data(tmp_path / "data")), "--window", "40"])
    out = capfd.readouterr().out
    lines = re.findall(r"events/s: p50 p95 p99 \[([\d.]+), ([\d.]+), ([\d.]+)\].*unanswered (\d+)", out)
    assert len(lines) == 4, out
    assert all(0 < float(p50) <= float(p95) <= float(p99) and left == "0" for p50, p95, p99, left in lines), out
