"""docker-compose.yml says nothing that the program does not know."""

from importlib import metadata
from pathlib import Path

import pytest
import typer
import yaml
from qdrant_client.common.version_check import is_compatible

from schemas.settings import load, rows
from workers.cli import app
from workers.store.answers import check_version

ROOT = Path(__file__).parents[1]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
ROLES = {name: service for name, service in COMPOSE["services"].items() if "build" in service}


def test_every_part_is_there():
    parts = {"kafka", "qdrant", "streams", "knowledge", "ranking", "guard", "knowledge-gpu", "fit"}
    assert parts <= set(COMPOSE["services"])
    assert len({service["image"] for service in ROLES.values()}) == 1, "one image for all roles"
    assert ROLES["knowledge-gpu"]["profiles"] == ["gpu"]
    devices = ROLES["knowledge-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert devices[0]["capabilities"] == ["gpu"]


@pytest.mark.parametrize("name", sorted(ROLES))
def test_every_setting_exists_and_has_a_value_that_loads(name):
    environment = ROLES[name]["environment"]
    known = {row.variable for row in rows()}
    assert set(environment) <= known
    # ${NAME:-default}: what compose passes when the outer environment is empty
    plain = {key: str(value).split(":-")[-1].rstrip("}") if str(value).startswith("${") else str(value)
             for key, value in environment.items()}
    settings = load(plain)
    assert settings.kafka.bootstrap == "kafka:19092"
    assert settings.qdrant.url == "http://qdrant:6333"


@pytest.mark.parametrize("name", sorted(ROLES))
def test_every_command_is_one(name):
    commands = typer.main.get_command(app).commands
    health = ROLES[name].get("healthcheck", {}).get("test", ["CMD", "freshet", "health"])
    for line in (ROLES[name]["command"], health[1:]):
        assert line[0] == "freshet"
        options = {option for parameter in commands[line[1]].params for option in parameter.opts}
        assert {word for word in line[2:] if word.startswith("--")} <= options
    if "--roles" in ROLES[name]["command"]:
        from workers.supervision.stack import ROLES as KNOWN

        role = ROLES[name]["command"][ROLES[name]["command"].index("--roles") + 1]
        assert role in KNOWN


def test_services_are_healthy_before_they_are_used_and_what_they_know_is_kept():
    for name in ("kafka", "qdrant", "streams", "knowledge", "ranking", "guard", "knowledge-gpu"):
        assert COMPOSE["services"][name]["healthcheck"]["test"], name
    for name in ("streams", "knowledge", "ranking", "guard"):
        assert set(ROLES[name]["depends_on"]) == {"kafka", "qdrant"}
        assert all(on["condition"] == "service_healthy" for on in ROLES[name]["depends_on"].values())
    assert {"kafka", "qdrant", "models"} == set(COMPOSE["volumes"])
    for service in COMPOSE["services"].values():
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            assert source.startswith("/") or source in COMPOSE["volumes"]


def test_the_image_is_built_from_files_that_are_there():
    for line in (ROOT / "deploy" / "Dockerfile").read_text().splitlines():
        if line.startswith("COPY ") and "--from" not in line:
            for source in line.split()[1:-1]:
                assert (ROOT / source).exists(), source


def test_the_qdrant_server_fits_the_client_and_keeps_conditions():
    """Qdrant's own check allows a difference of one minor version; the first server with `update_filter` is 1.16."""
    name, version = COMPOSE["services"]["qdrant"]["image"].split(":v")
    assert name == "qdrant/qdrant"
    check_version("http://qdrant:6333", version)
    assert is_compatible(metadata.version("qdrant-client"), version)
