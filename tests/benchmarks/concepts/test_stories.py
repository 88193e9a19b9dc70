"""The pictures of docs/concepts.md show what the text beside them says, and are those of the command."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np

from benchmarks.concepts.run import DETECTOR, DRAWINGS, drift_story, judge_story, pays, region_story

DOCS = Path(__file__).parents[3] / "docs"


def test_drift_is_found_after_the_change_and_not_before_or_again() -> None:
    story = drift_story()
    (found,) = story["refreshed"]
    assert found - story["changed"] == 3, "the page says three events"
    assert story["cusum"][found] > DETECTOR.threshold
    assert max(story["cusum"][:found]) <= DETECTOR.threshold


def test_harmful_knowledge_is_contradicted_and_helpful_knowledge_keeps_its_trust() -> None:
    helps, harms = judge_story(0.15), judge_story(-0.35)
    assert helps["crossed"] is None
    assert helps["trust"][-1] == 1
    assert harms["crossed"] is not None
    assert harms["trust"][-1] == 0


def test_what_is_served_goes_from_behaviour_to_knowledge() -> None:
    none, small, large = (region_story(radius) for radius in (0.0, 0.1, 0.5))
    np.testing.assert_allclose(none["served"], none["reference"], atol=1e-6)
    np.testing.assert_allclose(large["served"], large["fused"], atol=1e-4)
    assert (np.log(small["served"]) >= np.log(small["reference"]) - 0.1 - 1e-5).all()
    assert none["inverse"] == 0 < small["inverse"] < large["inverse"]


def test_what_pays_on_one_data_set_does_not_on_the_other() -> None:
    found = pays()
    assert all(gain.low > 0 for gain in found["amazon-beauty"].values())
    assert found["movielens-100k"]["words"].mean < 0


def test_the_pages_pictures_are_those_of_the_command(tmp_path: Path) -> None:
    page = (DOCS / "concepts.md").read_text()
    assert set(re.findall(r"\((concept-[a-z]+\.svg)\)", page)) == set(DRAWINGS)
    # A process of its own: what other tests of this one set in matplotlib or torch would change a curve's last points.
    command = [sys.executable, "-m", "benchmarks.concepts.run", "--out", str(tmp_path)]
    subprocess.run(command, cwd=DOCS.parent, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True, capture_output=True)
    for name in DRAWINGS:
        # Without numbers: the last digit of a coordinate may differ between processors.
        drawn, kept = (re.sub(r"-?\d[\d.e-]*", "", (folder / name).read_text()) for folder in (tmp_path, DOCS))
        assert drawn.splitlines() == kept.splitlines(), f"run `make bench-concepts` and commit docs/{name}"
