import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from schemas.errors import FreshetError
from workers.cli import app

COMMANDS = ["demo", "fit", "calibrate", "up", "role", "health", "produce", "tail", "topics", "dead-letters", "user",
            "experiment",
            "doctor", "models", "schema"]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_every_command_has_an_example(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    assert "Example" in result.output


def run(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environ = {key: value for key, value in os.environ.items() if not key.startswith("FRESHET_")}
    return subprocess.run(
        [sys.executable, "-m", "workers.cli", *arguments], capture_output=True, text=True, check=False, timeout=60,
        env=environ | {"FRESHET_HOME": str(home)})


@pytest.mark.parametrize(("arguments", "message"), [
    (("up",), "freshet fit"),
    (("tail", "recommendations"), "freshet up"),
    (("role", "nonsense"), "unknown role"),
    (("models",), "no fitted model"),
])
def test_a_user_error_is_one_message_and_exit_code_1(
    tmp_path: Path, arguments: tuple[str, ...], message: str,
) -> None:
    done = run(tmp_path, *arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [("-abc",), ("--", "-abc"), ("--42",), ("--", "--last"), ("-",)])
def test_ids_may_begin_with_a_hyphen(arguments: tuple[str, ...]) -> None:
    done = CliRunner().invoke(app, ["user", *arguments], env={"FRESHET_HOME": "/nowhere"})
    assert isinstance(done.exception, FreshetError), done.output  # the id was taken; there is no broker to ask
    assert "no broker" in str(done.exception)


def test_wrong_usage_exits_with_code_2(tmp_path: Path) -> None:
    assert run(tmp_path, "produce").returncode == 2


def test_doctor_reports_a_missing_model(tmp_path: Path) -> None:
    done = run(tmp_path, "doctor")
    assert done.returncode == 0, done.stderr  # before the first fit the model is missing, not broken
    assert "no fitted model" in " ".join(done.stdout.split())


def test_doctor_lists_settings_without_secrets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FRESHET_HOME", str(tmp_path))
    monkeypatch.setenv("FRESHET_KAFKA_SASL_PASSWORD", "hunter2")
    result = CliRunner().invoke(app, ["doctor", "--settings"], env={"COLUMNS": "200"})
    assert "FRESHET_KAFKA_SASL_PASSWORD" in result.output
    assert "hunter2" not in result.output
