"""What docker-compose.yml and the Dockerfile say, as plain data."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from schemas.errors import FreshetError

_VARIABLE = re.compile(r"\$\{(\w+):-([^}]*)\}")


@dataclass(frozen=True, slots=True)
class Image:
    """The last stage of a Dockerfile.

    Args:
        environment: what ENV sets; values may refer to the base image's PATH.
        copied: (sources, target) of every COPY of the first stage.
        folders: what `install -d` makes for the user.
    """

    environment: dict[str, str]
    uid: int
    gid: int
    folder: str
    copied: list[tuple[list[str], str]]
    folders: list[str]


@dataclass(frozen=True, slots=True)
class Volume:
    """A mount: `source` is a name, a folder of the project, or "" for one that is the container's own."""

    source: str
    target: str
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class Service:
    """A container to be."""

    name: str
    image: str
    command: list[str]
    environment: dict[str, str]
    volumes: list[Volume]
    tmpfs: list[tuple[str, str]]
    ports: list[tuple[int, int]]
    health: list[str]
    grace_s: float
    read_only: bool
    profiles: list[str]


def read_image(dockerfile: str) -> Image:
    """Read a Dockerfile of two stages."""
    lines = dockerfile.replace("\\\n", " ").splitlines()
    last = max(at for at, line in enumerate(lines) if line.startswith("FROM "))
    environment: dict[str, str] = {}
    for line in lines[last:]:
        if line.startswith("ENV "):
            environment |= dict(pair.split("=", 1) for pair in line.split()[1:])
    (user,) = (line.split()[1] for line in lines[last:] if line.startswith("USER "))
    (folder,) = (line.split()[1] for line in lines[last:] if line.startswith("WORKDIR "))
    made = re.findall(r"install -d -o (\d+) -g (\d+) -m 0755 ([^&\n]+)", "\n".join(lines[last:]))
    uid, gid = (int(part) for part in user.split(":"))
    if {(int(owner), int(group)) for owner, group, _ in made} != {(uid, gid)}:
        raise FreshetError("the image's folders belong to another user than the one that runs in it")
    copied = [line.split()[1:] for line in lines[:last] if line.startswith("COPY ")]
    return Image(environment, uid, gid, folder, [(sources, target) for *sources, target in copied],
                 [one for *_, folders in made for one in folders.split()])


def read_environment(path: Path) -> dict[str, str]:
    """Read an env_file: NAME=VALUE lines."""
    lines = path.read_text().splitlines() if path.is_file() else []
    return dict(line.split("=", 1) for line in lines if line.strip() and not line.startswith("#"))


def read_services(root: Path, outside: Mapping[str, str]) -> dict[str, Service]:
    """Return the services of `root`/docker-compose.yml.

    Args:
        outside: what the file `.env` holds.
    """
    found = yaml.safe_load((root / "docker-compose.yml").read_text())["services"]
    return {name: _service(name, _filled(entry, outside), outside) for name, entry in found.items()}


def _filled(value: Any, outside: Mapping[str, str]) -> Any:
    """Put variables into the texts of a parsed document; an empty one stays a text."""
    if isinstance(value, dict):
        return {key: _filled(one, outside) for key, one in value.items()}
    if isinstance(value, list):
        return [_filled(one, outside) for one in value]
    if isinstance(value, str):
        return _VARIABLE.sub(lambda one: outside.get(one[1]) or one[2], value)
    return value


def _service(name: str, entry: dict[str, Any], outside: Mapping[str, str]) -> Service:
    environment = dict(outside) if "env_file" in entry else {}
    environment |= {key: str(value) for key, value in entry.get("environment", {}).items()}
    return Service(
        name=name, image=entry["image"], command=entry.get("command", []), environment=environment,
        volumes=[_volume(one) for one in entry.get("volumes", [])],
        tmpfs=[(target, options) for target, _, options in (one.partition(":") for one in entry.get("tmpfs", []))],
        ports=[(int(host), int(inside)) for _, host, inside in (one.split(":") for one in entry.get("ports", []))],
        health=entry.get("healthcheck", {}).get("test", ["CMD"])[1:],
        grace_s=float(entry.get("stop_grace_period", "10s").rstrip("s")), read_only=entry.get("read_only", False),
        profiles=entry.get("profiles", []))


def _volume(text: str) -> Volume:
    parts = text.split(":")
    if len(parts) == 1:
        return Volume("", parts[0])
    return Volume(parts[0], parts[1], parts[2:] == ["ro"])
