"""docker-compose.yml and the Dockerfile, read and rehearsed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from schemas.errors import FreshetError
from tests.containers.compose import Volume, read_environment, read_image, read_services

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text()
TOOLS = ("unshare", "nsenter", "setpriv", "ip", "mount")


def has_namespaces() -> bool:
    if os.getuid() or any(shutil.which(tool) is None for tool in TOOLS):
        return False
    return subprocess.run(["unshare", "--mount", "--net", "--pid", "--fork", "true"], check=False).returncode == 0


def test_the_image_is_read_as_its_last_stage_says() -> None:
    image = read_image(DOCKERFILE)
    assert (image.uid, image.gid, image.folder) == (10001, 10001, "/var/lib/freshet")
    assert image.environment["PATH"] == "/opt/freshet/bin:$PATH"
    assert image.environment["FRESHET_LOG_TO"] == "stderr"
    assert (["schemas"], "schemas") in image.copied
    assert image.folders == [f"/var/lib/freshet{one}" for one in ("", "/run", "/streams", "/console")]


def test_folders_of_another_user_are_an_error() -> None:
    with pytest.raises(FreshetError):
        read_image(DOCKERFILE.replace("install -d -o 10001", "install -d -o 0"))


def test_services_get_what_compose_gives_them() -> None:
    outside = {"FRESHET_KAFKA_PARTITIONS": "8", "FRESHET_RANKING_TOP": "20"}
    services = read_services(ROOT, outside)
    streams, fit = services["streams"], services["fit"]
    assert streams.environment["FRESHET_KAFKA_PARTITIONS"] == "8"
    assert streams.environment["FRESHET_KAFKA_BOOTSTRAP"] == "kafka:19092"
    assert streams.environment["FRESHET_RANKING_TOP"] == "20"
    assert streams.volumes == [Volume("models", "/var/lib/freshet"), Volume("", "/var/lib/freshet/streams")]
    assert (streams.read_only, streams.profiles, streams.grace_s) == (True, [], 30)
    assert streams.health == ["freshet", "health"]
    assert fit.profiles == ["fit"]
    assert "FRESHET_RANKING_TOP" not in services["kafka"].environment
    assert services["kafka"].ports == [(9092, 9092)]
    assert all(isinstance(value, str) and value != "None" for one in services.values()
               for value in one.environment.values())


def test_an_environment_file_is_read_line_by_line(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("# a\n\nA=1\nB=x=y\n#C=2\n")
    assert read_environment(tmp_path / ".env") == {"A": "1", "B": "x=y"}
    assert read_environment(tmp_path / "none") == {}


@pytest.mark.skipif(
    shutil.which("docker") is None or subprocess.run(
        ["docker", "compose", "version"], capture_output=True, check=False).returncode != 0,
    reason="no docker compose here")
def test_docker_compose_accepts_the_file() -> None:
    done = subprocess.run(["docker", "compose", "--profile", "*", "config", "--quiet"], cwd=ROOT, capture_output=True,
                          text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not has_namespaces(), reason="only root on Linux can make namespaces")
def test_compose_is_rehearsed_from_fit_to_stop() -> None:
    done = subprocess.run([sys.executable, "-m", "tests.containers.run"], cwd=ROOT, capture_output=True, text=True,
                          timeout=850, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-6000:]
