"""Other systems, fitted by `freshet fit --system` and served by the same roles as Freshet's own models."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.systems.table import SYSTEMS
from tests.system.conftest import fit
from tests.system.stack import Stack
from tests.system.test_main_job import catalogue, fully_answered, sessions

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.mark.parametrize("name", ["generative", "grasp"])  # others: tests/models/fitting/test_row.py
def test_a_row_is_fitted_and_served(name: str, data: Path, small: dict[str, str], tmp_path: Path) -> None:
    home = tmp_path / "home"
    fit(home, data, small, "--system", name)
    # A system without knowledge gets no knowledge requests, whatever the policy.
    refresh = {"FRESHET_REFRESH_POLICY": "always", "FRESHET_REFRESH_MIN_HISTORY": "3", "FRESHET_RANKING_EPSILON": "1.0"}
    with Stack(home, **small, **refresh) as stack:
        events = sessions(catalogue(stack), users=6, per_user=8)
        for start in range(0, len(events), 12):
            stack.produce(events[start : start + 12])
        stack.until(lambda: fully_answered(stack, events))
        if SYSTEMS[name].has_knowledge:
            stack.until(lambda: any(answer["source"] == "fused" for answer in stack.records("recommendations")))
        else:
            assert stack.records("knowledge-requests") == []
        seen: dict[str, set[str]] = {}
        for event in events:
            seen.setdefault(event["user_id"], set()).add(event["item_id"])
        for answer in stack.records("recommendations"):
            offered = [item["item_id"] for item in answer["items"]]
            assert len(offered) == len(set(offered)) == 10
            assert all(item["score"] < 0 for item in answer["items"])
            if answer["count"] == 8:
                assert not seen[answer["user_id"]] & set(offered)
            assert answer["source"] == "fused" or answer["fallback"] is not None
        assert stack.records("dead-letters") == []
