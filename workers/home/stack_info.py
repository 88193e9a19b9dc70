"""Where the running stack of a home folder is: its lock, and the file that tells other commands how to reach it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import orjson
import psutil
from pydantic import BaseModel, Field, ValidationError

from schemas.errors import FreshetError
from schemas.files import write_whole
from schemas.settings import Settings
from workers.home.lock import run_folder
from workers.home.store_key import kept_key


class ProcessReport(BaseModel):
    """One role of a running stack, as its supervisor sees it."""

    running: bool = Field(description="false: it ended and waits to be started again")
    ready: bool
    since: float | None = Field(description="monotonic seconds of its start; null while it does not run")
    restarts: int = Field(description="by this supervisor")
    failures: int = Field(description="in a row")
    waits_for: str = Field(description="'broker' or 'store' if it ended for lack of that; '' = nothing")
    error: str = Field(description="why it last ended, in one line; '' = it never did")


class Running(BaseModel):
    """A running stack, as it tells of itself in `run/up.json`."""

    pid: int = Field(ge=1, lt=2**31, description="of the supervisor")
    started_at: float
    bootstrap: str
    qdrant_url: str
    prefix: str = Field(default="", description="of all its names on broker and store")
    roles: list[str]
    command: str = Field(description="'up' or 'demo'")
    pids: dict[str, int] = Field(default_factory=dict)
    ready: bool = Field(default=False, description="every role has said it is ready, once")
    # Monotonic seconds are the same for all processes of a machine and do not jump with its clock.
    beat: float = Field(default=0.0, description="monotonic seconds of this writing")
    waits_for: str = Field(default="", description="'broker' while the start waits for it")
    processes: dict[str, ProcessReport] = Field(default_factory=dict, description="per role")


def announce(home: Path, running: Running) -> None:
    """Write `run/up.json`, whole or not at all."""
    content = orjson.dumps(running.model_dump(), option=orjson.OPT_INDENT_2)
    write_whole(run_folder(home) / "up.json", content, durable=False)


def withdraw(home: Path) -> None:
    """Remove `run/up.json` if it is of this process: another's stack would no longer be found."""
    running = find(home)
    if running is None or running.pid == os.getpid():
        (run_folder(home) / "up.json").unlink(missing_ok=True)


def find(home: Path) -> Running | None:
    """Return the stack that runs on `home`, None if there is none or it has died."""
    path = run_folder(home) / "up.json"
    try:
        running = Running.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
    return running if psutil.pid_exists(running.pid) else None


def connected(settings: Settings) -> Settings:
    """Return `settings` with broker, prefix and store of the running stack filled in where they are not set.

    Raises:
        FreshetError: no broker is set and no stack runs.
    """
    running = find(settings.home)
    if running is None:
        if not settings.kafka.bootstrap:
            raise FreshetError(
                f"no broker: nothing runs on {settings.home}. Start `freshet up` first, or set "
                "FRESHET_KAFKA_BOOTSTRAP=host:port")
        return settings
    if settings.kafka.bootstrap not in ("", running.bootstrap):
        return settings
    url = settings.qdrant.url or running.qdrant_url
    return replace(
        settings,
        kafka=replace(settings.kafka, bootstrap=running.bootstrap, prefix=settings.kafka.prefix or running.prefix),
        qdrant=replace(settings.qdrant, url=url, api_key=settings.qdrant.api_key or kept_key(settings.home, url)))
