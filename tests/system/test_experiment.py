"""An online experiment on a running stack: what each arm gets, and the report of `freshet experiment`."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from schemas.experiment import arm
from tests.system.stack import Stack
from tests.system.test_main_job import catalogue, fully_answered, sessions

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def test_control_users_get_the_reference_and_the_uplift_is_reported(fitted, home: Path, tmp_path: Path):
    share = {"FRESHET_EXPERIMENT_NAME": "spring", "FRESHET_EXPERIMENT_CONTROL": "0.5"}
    with Stack(home, **fitted[1], **share) as stack:
        nothing = stack.run("experiment")
        assert nothing.returncode == 1
        assert "FRESHET_EXPERIMENT_NAME" in nothing.stderr
        events = sessions(catalogue(stack), users=24, per_user=30)
        first = 2 * len(events) // 3  # enough events for knowledge
        stack.produce(events[:first])
        stack.until(lambda: fully_answered(stack, events[:first]), 90)
        stack.until(lambda: any(answer["source"] == "fused" for answer in stack.records("recommendations")), 90)
        stack.produce(events[first:])
        stack.until(lambda: fully_answered(stack, events), 90)
        arms = set()
        for answer in stack.records("recommendations"):
            arms.add(answer["arm"])
            assert (answer["experiment"], answer["arm"]) == ("spring", arm(answer["user_id"], "spring", 0.5))
            if answer["arm"] == "control":
                assert [item["item_id"] for item in answer["items"]] == answer["reference"]
                assert (answer["source"], answer["fallback"], answer["kl"]) == ("reference", "control", 0.0)
        assert arms == {"control", "treatment"}
        # Knowledge of control users is generated and judged too.
        control = {event["user_id"] for event in events if arm(event["user_id"], "spring", 0.5) == "control"}
        assert control & {update["user_id"] for update in stack.records("knowledge-updates")}
        figures_at, plot = tmp_path / "spring.json", tmp_path / "spring.svg"
        shown = stack.run("experiment", "--window", "300", "--json", str(figures_at), "--plot", str(plot))
        assert shown.returncode == 0, shown.stdout + shown.stderr
        assert "may look at the interval at any time" in " ".join(shown.stdout.split())
        figures = orjson.loads(figures_at.read_bytes())
        assert (figures["users"], figures["open_users"]) == (24, 0)
        assert figures["arms"]["control"]["users"] == len(control)
        assert figures["arms"]["treatment"]["events"] > 0
        low, high = figures["interval"]
        assert low <= figures["uplift"] <= high
        assert "<svg" in plot.read_text()
        assert "belongs to experiment" in stack.run("experiment", "autumn").stderr
