"""docker-compose.yml and the image say nothing that the program does not know, and give nothing more than it needs."""

import re
from importlib.metadata import version
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
ROLES = {name: service for name, service in COMPOSE["services"].items() if service["image"].startswith("freshet:")}
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text().replace("\\\n", " ")
HOME = "/var/lib/freshet"
UID = "10001"


def test_every_part_is_there():
    parts = {"kafka", "qdrant", "streams", "knowledge", "ranking", "guard", "knowledge-gpu", "fit"}
    assert parts <= set(COMPOSE["services"])
    assert len({service["image"] for service in ROLES.values()}) == 1, "one image for all roles"
    assert ROLES["knowledge-gpu"]["profiles"] == ["gpu"]
    devices = ROLES["knowledge-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert devices[0]["capabilities"] == ["gpu"]


def passed(name: str, outside: dict[str, str]) -> dict[str, str]:
    """The variables that a role's container gets, by compose's rules, where `outside` is what `.env` holds."""
    assert ROLES[name]["env_file"] == [{"path": ".env", "required": False}]
    out = dict(outside)
    for key, value in ROLES[name]["environment"].items():
        plain = re.fullmatch(r"\$\{(\w+):-(.*)\}", value)
        out[key] = (outside.get(plain[1]) or plain[2]) if plain else value
    return out


@pytest.mark.parametrize("name", sorted(ROLES))
def test_every_setting_exists_and_has_a_value_that_loads(name):
    settings = load(passed(name, {}))
    assert settings.kafka.bootstrap == "kafka:19092"
    assert settings.qdrant.url == "http://qdrant:6333"
    assert str(settings.home) == HOME


@pytest.mark.parametrize("name", sorted(ROLES))
def test_every_setting_outside_reaches_every_role(name):
    outside = {variable: "x" for row in rows() for variable in (row.variable, row.file_variable) if variable}
    got = passed(name, outside)
    assert set(got) == set(outside)
    fixed = {"FRESHET_HOME", "FRESHET_METRICS_PORT", "FRESHET_METRICS_HOST"}
    fixed |= ({"FRESHET_LLM_DEVICE"} if name == "knowledge-gpu" else set())
    fixed |= ({"FRESHET_CONSOLE_PORT", "FRESHET_CONSOLE_HOST"} if name == "console" else set())
    assert {key for key, value in got.items() if value != "x"} == fixed


def test_what_only_compose_reads_is_not_taken_for_a_setting():
    known = {row.variable for row in rows()}
    read = set(re.findall(r"\$\{(\w+)", (ROOT / "docker-compose.yml").read_text()))
    assert {variable for variable in read if variable.startswith("FRESHET_")} <= known
    assert {variable for variable in read if not variable.startswith("FRESHET_")} == {"IMAGE_TAG"}


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
    assert {"kafka", "qdrant", "models", "prometheus", "grafana"} == set(COMPOSE["volumes"])
    for service in COMPOSE["services"].values():
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            assert source.startswith("/") or source in COMPOSE["volumes"] or (
                source.startswith("./deploy/") and volume.endswith(":ro") and (ROOT / source).is_dir())


def test_one_service_builds_the_image_and_the_others_wait_for_no_registry():
    assert [name for name, service in ROLES.items() if "build" in service] == ["streams"]
    assert "profiles" not in ROLES["streams"]  # a service of a profile is not built by `docker compose build`
    assert {service.get("pull_policy") for name, service in ROLES.items() if name != "streams"} == {"never"}


@pytest.mark.parametrize("name", sorted(COMPOSE["services"]))
def test_no_container_has_a_privilege(name):
    service = COMPOSE["services"][name]
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert not {"privileged", "cap_add", "pid", "ipc", "network_mode", "devices"} & set(service)
    assert not any("docker.sock" in volume for volume in service["volumes"])
    for port in service.get("ports", ()):
        assert port.startswith("127.0.0.1:"), "in plain text only to this machine"


def image_user():
    return re.findall(r"^USER (\S+)$", DOCKERFILE, re.MULTILINE)[-1]


@pytest.mark.parametrize("name", sorted(ROLES))
def test_a_role_writes_where_its_user_may_and_nowhere_else(name):
    """A new volume takes the owner of the image's folder at its place; a place that the image lacks is root's."""
    assert image_user() == f"{UID}:{UID}"
    assert ROLES[name]["read_only"] is True
    made = re.findall(rf"install -d -o {UID} -g {UID} -m 0755 ([^&\n]+)", DOCKERFILE)
    owned = {folder for part in made for folder in part.split()}
    volumes = {volume.split(":")[-1] for volume in ROLES[name]["volumes"]}
    assert HOME in volumes
    assert volumes <= owned
    assert DOCKERFILE.index("install -d") < DOCKERFILE.index("VOLUME")
    for mount in ROLES[name]["tmpfs"]:
        path, _, options = mount.partition(":")
        assert path == "/tmp" or f"uid={UID}" in options.split(",")  # noqa: S108
    assert {mount.partition(":")[0] for mount in ROLES[name]["tmpfs"]} == {"/tmp", f"{HOME}/run"}  # noqa: S108


def test_an_instance_of_streams_has_states_of_its_own():
    assert f"{HOME}/streams" in ROLES["streams"]["volumes"]
    assert f"{HOME}/streams" not in {volume for name in ROLES if name != "streams" for volume in ROLES[name]["volumes"]}


def test_the_image_is_built_from_files_that_are_there():
    for line in (ROOT / "deploy" / "Dockerfile").read_text().splitlines():
        if line.startswith("COPY ") and "--from" not in line:
            for source in line.split()[1:-1]:
                assert (ROOT / source).exists(), source


def test_the_qdrant_server_fits_the_client_and_keeps_conditions():
    """Qdrant's own check allows a difference of one minor version; the first server with `update_filter` is 1.16."""
    server = re.fullmatch(r"qdrant/qdrant:v(\d+\.\d+\.\d+)-unprivileged", COMPOSE["services"]["qdrant"]["image"])
    assert server
    check_version("http://qdrant:6333", server[1])
    assert is_compatible(version("qdrant-client"), server[1])
    constraints = (ROOT / "deploy" / "constraints.txt").read_text().splitlines()
    assert f"qdrant-client=={version('qdrant-client')}" in constraints
