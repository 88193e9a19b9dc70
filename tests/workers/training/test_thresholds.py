"""`freshet calibrate` on a fitted model and a small data set: choose, check, use and reset the threshold."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from schemas.artifacts import Artifact, Registry
from schemas.errors import ArtifactError, DataError
from schemas.settings import Settings
from streams.calibration.alarms import watch
from streams.detection.drift import Detector
from streams.profile.catalogue import ItemVectors
from tests.workers import fitted
from workers.cli import app
from workers.training.thresholds import recalibrate, report, write


def write_data(folder: Path, users: int, events: int, seed: int, taste: Callable[[int], float]) -> Path:
    """Users who like items with weights drawn from a Dirichlet distribution of concentration taste(user)."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    with (folder / "events.csv").open("w", newline="") as out:
        rows = csv.writer(out)
        rows.writerow(["user_id", "item_id", "timestamp"])
        for user in range(users):
            likes = rng.dirichlet(np.full(fitted.N, taste(user)))
            for turn, item in enumerate(rng.choice(fitted.N, int(rng.integers(5, events)), p=likes)):
                rows.writerow([f"u{user}", f"i{item}", 1_600_000_000 + turn * users + user])
    (folder / "items.jsonl").write_text("".join(
        json.dumps({"item_id": item, "title": f"{item} thing"}) + "\n" for item in fitted.ITEMS))
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, Artifact, Path]:
    home = tmp_path_factory.mktemp("home")
    settings = fitted.settings_in(home)
    artifact = fitted.publish(settings, "v1")
    return settings, artifact, write_data(home / "data", 300, 60, 0, lambda _: 0.3)


def test_calibrate_and_reset(world: tuple[Settings, Artifact, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    settings, artifact, folder = world
    monkeypatch.setenv("FRESHET_HOME", str(settings.home))
    run = CliRunner()
    dry = run.invoke(app, ["calibrate", "--data", str(folder), "--false-alarm-every", "100", "--dry-run"])
    assert dry.exit_code == 0, dry.output
    assert "other users" in dry.output
    assert artifact.calibration().drift_threshold == fitted.CALIBRATION.drift_threshold

    done = run.invoke(app, ["calibrate", "--data", str(folder), "--false-alarm-every", "100"])
    assert done.exit_code == 0, done.output
    used = Registry(settings.home).open().calibration()
    assert used.drift_threshold != fitted.CALIBRATION.drift_threshold
    assert used.drift_false_alarm_every >= 100
    assert used.evidence["drift_check_users"] >= 140
    assert used.evidence["drift_check_held"] == 1.0
    assert used.evidence["drift_check_low"] < 100 < used.evidence["drift_check_high"]
    assert used.model_copy(update={"drift_threshold": 5.0, "drift_false_alarm_every": 500.0, "evidence": {}}) \
        == fitted.CALIBRATION, "nothing else has changed"
    assert Registry(settings.home).versions() == ["v1"]

    undone = run.invoke(app, ["calibrate", "--reset"])
    assert undone.exit_code == 0
    assert Registry(settings.home).open().calibration() == fitted.CALIBRATION


def test_new_users_of_the_same_kind_meet_the_stated_rate(
    world: tuple[Settings, Artifact, Path], tmp_path: Path,
) -> None:
    settings, artifact, folder = world
    found = recalibrate(artifact, folder, settings, 80.0)
    detector = Detector.of(artifact.calibration().model_copy(
        update={"drift_threshold": found.drift.threshold}), settings.refresh)
    rng = np.random.default_rng(11)
    histories = [rng.choice(fitted.N, 40, p=rng.dirichlet(np.full(fitted.N, 0.3))) for _ in range(800)]
    seen = watch(histories, ItemVectors.load(artifact), settings.state, detector,
                 first=fitted.CALIBRATION.min_history, cooldown=settings.refresh.cooldown)
    expected = seen.watched.sum() / 80.0
    chosen_on = 150 * 28 / 80.0  # about the number of alarms that the threshold is based on
    assert abs(len(seen.user) - expected) < 4 * expected * np.sqrt(1 / expected + 1 / chosen_on)


def test_a_failed_check_changes_nothing_and_says_what_to_do(world: tuple[Settings, Artifact, Path]) -> None:
    settings, artifact, folder = world
    found = recalibrate(artifact, folder, settings, 100.0)
    assert found.drift.check is not None
    # The same threshold checked against another stated rate: the check must fail.
    broken = replace(found, drift=replace(found.drift, stated=10_000.0))
    assert "NOT HELD" in report(broken)
    with pytest.raises(DataError, match=r"the check failed.*more often than the stated 10000.*--false-alarm-every"):
        broken.require()
    assert not artifact.recalibration.exists()


def test_a_failed_check_exits_with_code_1(world: tuple[Settings, Artifact, Path], tmp_path: Path) -> None:
    settings, artifact, _ = world
    alone = write_data(tmp_path / "alone", 1, 60, 3, lambda _: 0.3)
    done = subprocess.run(
        [sys.executable, "-m", "workers.cli", "calibrate", "--data", str(alone)], capture_output=True, text=True,
        env={"FRESHET_HOME": str(settings.home), "PATH": ""}, check=False, timeout=60)
    assert done.returncode == 1
    assert "no users to check the threshold on" in done.stderr
    assert "Traceback" not in done.stderr
    assert not artifact.recalibration.exists()


def test_items_the_model_does_not_know_are_counted(world: tuple[Settings, Artifact, Path], tmp_path: Path) -> None:
    settings, artifact, _ = world
    folder = write_data(tmp_path / "other", 100, 60, 4, lambda _: 0.3)
    with (folder / "events.csv").open("a") as out:
        out.writelines(f"u{user},new,{1_601_000_000 + user}\n" for user in range(100))
    found = recalibrate(artifact, folder, settings, 50.0)
    assert 0.0 < found.unknown < 0.1
    assert "does not know" in report(found)


def test_a_recalibration_of_another_fit_is_refused(world: tuple[Settings, Artifact, Path]) -> None:
    settings, artifact, folder = world
    path = write(artifact, recalibrate(artifact, folder, settings, 100.0))
    try:
        path.write_text(path.read_text().replace(artifact.card.files["calibration.json"], "0" * 64))
        with pytest.raises(ArtifactError, match="another fit"):
            artifact.calibration()
        recalibrate(artifact, folder, settings, 100.0)  # recalibrating resolves the error
        path.write_text("{}")
        with pytest.raises(ArtifactError, match=r"drift\.json.*--reset"):
            artifact.calibration()
    finally:
        path.unlink()


def test_events_that_are_no_evidence_do_not_move_the_threshold(
    world: tuple[Settings, Artifact, Path], tmp_path: Path,
) -> None:
    """Impressions, and purchases that came back, beside the same behaviour."""
    settings, artifact, folder = world
    lines = (folder / "events.csv").read_text().splitlines()
    rows = [lines[0] + ",event_type", *(line + ",view" for line in lines[1:])]
    for user in range(0, 300, 2):
        for turn, kind in ((1, "impression"), (2, "purchase"), (3, "return"), (900, "search")):
            rows.append(f"u{user},i{user % fitted.N},{1_500_000_000 + turn},{kind}")
    noisy = tmp_path / "data"
    noisy.mkdir()
    (noisy / "events.csv").write_text("\n".join(rows))
    (noisy / "items.jsonl").write_bytes((folder / "items.jsonl").read_bytes())
    quiet, loud = (recalibrate(artifact, where, settings, 100.0, seed=1).drift for where in (folder, noisy))
    assert quiet == loud
