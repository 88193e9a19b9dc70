"""The benchmark of a living catalogue on a made-up world: what it compares, and its page."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.catalogue import run
from benchmarks.catalogue.quality import LaterWorld, compare
from models.evidence.item_knowledge import Parts

WORDS = Parts(words=0.6)


def test_items_without_training_events_come_last_and_are_found_once_they_are_put(tmp_path: Path) -> None:
    world = LaterWorld.of(run.made_up(tmp_path), None)
    assert 0 < world.fitted < len(world.items)
    assert world.past.item.max() < world.fitted
    base = world.fit(world.fitted, WORDS)
    found = compare(world, base, WORDS, lambda _: None)
    assert found["items"] == len(world.items) - world.fitted
    assert found["put"]["unseen"] > 0.05
    assert found["put"]["known"] == pytest.approx(found["refit"]["known"], rel=0.1)


@pytest.mark.slow
def test_the_quick_run_prints_every_figure(capfd: pytest.CaptureFixture[str]) -> None:
    run.main(["--quick"])
    text = capfd.readouterr().out
    assert "can be in a list for its text" in text
    assert "another fit, with them" in text
