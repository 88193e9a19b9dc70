"""`freshet models`, and what `freshet doctor` says of models, on a registry of empty versions."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest
from typer.testing import CliRunner, Result

from schemas.artifacts import Card, write_card
from schemas.deployments import Deployments
from workers.cli import app
from workers.terminal.stages import Stages
from workers.training.fit import _put_into_use


@pytest.fixture
def deployments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Deployments:
    monkeypatch.setenv("FRESHET_HOME", str(tmp_path))
    out = Deployments(tmp_path)
    for version in ("m1", "m2", "m3"):
        with out.registry.publish(version) as folder:
            (folder / "items.json").write_text("[]")
            write_card(folder, Card(model_version=version, created_at=100.0, sequence=out.registry.next_sequence(),
                                    data_hash="", settings={}, split_time=0, files={}))
        out.fitted(version, 200.0)
    return out


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "250"})


def test_the_table_says_what_was_rolled_back_by_whom_and_why(
    deployments: Deployments, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LOGNAME", "ann")
    done = call("models", "rollback", "--reason", "clicks fell")
    assert done.output == "rolled back m3; in use: m2; no stack is running, so it takes effect at the next start\n"
    (deployments.registry.folder / "m1" / "card.json").write_text("{")
    lines = call("models").output.splitlines()
    (current,) = [line for line in lines if line.startswith("→")]
    assert current.split()[1] == "m2"
    assert any("m3" in line and "by ann: clicks fell" in line for line in lines)
    assert any("m1" in line and "card.json" in line for line in lines), "a damaged version does not hide the others"


def test_a_missing_or_damaged_version_is_not_selected(deployments: Deployments) -> None:
    (deployments.registry.folder / "m1" / "items.json").write_text("[1]")
    for version, message in (("m1", "does not match its hash"), ("m9", "available: ['m1', 'm2', 'm3']"),
                             ("../m2", "no model version")):
        done = call("models", "--select", version)
        assert (done.exit_code, message in str(done.exception)) == (1, True), done.exception
    assert deployments.in_use().model_version == "m3"


def test_a_fit_on_the_same_data_does_not_bring_back_what_was_rolled_back(
    deployments: Deployments, capsys: pytest.CaptureFixture[str],
) -> None:
    deployments.roll_back(300.0, "guard: harm", "guard")
    with Stages() as stages:
        _put_into_use(deployments, "m3", stages)
    assert deployments.in_use().model_version == "m2"
    said = " ".join(capsys.readouterr().out.split())
    assert "rolled back (guard: harm); m2 stays in use. `freshet models --select m3`" in said
    with Stages() as stages:
        _put_into_use(deployments, "m1", stages)
    assert deployments.in_use().model_version == "m1"


def test_doctor_names_a_role_that_cannot_load_the_model_in_use(deployments: Deployments) -> None:
    run = deployments.registry.folder.parent / "run"
    run.mkdir()
    (run / "knowledge.json").write_bytes(orjson.dumps({"model_waiting": "m3: MemoryError: "}))
    (run / "ranking.json").write_bytes(orjson.dumps({"model_waiting": ""}))
    (run / "fit.json").write_bytes(b"[")
    assert "knowledge does not use the model in use: m3: MemoryError" in " ".join(call("doctor").output.split())
