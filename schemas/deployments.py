"""LoRA adapters beside the fitted models, and the log of what was put into use.

`models/adapters/<name>/` holds one attempt at teaching the language model: `alignment.json` says what came of it, and a
published one has peft's two files beside it (safetensors; there is no pickle). `models/deployed.jsonl` has a line per
change of what is in use, so that a process that starts knows it and a rollback knows what was before.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from schemas.artifacts import Registry
from schemas.errors import ArtifactError
from schemas.files import sync, written_whole
from schemas.messages import ModelUpdate

RECORD = "alignment.json"
WEIGHTS = ("adapter_config.json", "adapter_model.safetensors")


class Attempt(BaseModel):
    """One attempt at an adapter, published or rejected."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    schema_version: int = 1
    name: str = Field(description="of the folder")
    base: str = Field(description="the fitted model's version")
    started_from: str = Field(default="", description="model version whose adapter it went on from; empty = none")
    created_at: float
    published: bool
    reason: str = Field(description="why it was published or rejected")
    figures: dict[str, float] = Field(default_factory=dict)

    @property
    def model_version(self) -> str:
        """What knowledge made with it is labelled with."""
        return f"{self.base}+{self.name}"

    @property
    def adapter(self) -> str:
        """Its folder, as a `ModelUpdate` names it."""
        return f"adapters/{self.name}"


class Deployed(BaseModel):
    """A line of the log: what was put into use."""

    update: ModelUpdate
    by: Literal["alignment", "rollback", "select"]
    reason: str = ""


class Deployments:
    """Attempts and the log of what is in use, under `home`."""

    def __init__(self, home: Path) -> None:
        self.registry = Registry(home)
        self.folder = self.registry.folder / "adapters"
        self._log = self.registry.folder / "deployed.jsonl"

    def attempts(self) -> list[Attempt]:
        """Return all attempts, oldest first; unreadable records are passed over."""
        out = []
        for path in self.folder.glob("*/" + RECORD):
            if path.parent.name.startswith("."):  # still being made
                continue
            try:
                out.append(Attempt.model_validate_json(path.read_bytes()))
            except (OSError, ValidationError):
                continue
        return sorted(out, key=lambda attempt: (attempt.created_at, attempt.name))

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """Yield an empty folder for an adapter being made; what is left of it at the end is removed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", dir=self.folder, ignore_cleanup_errors=True) as name:
            yield Path(name)

    def record(self, attempt: Attempt, scratch: Path | None = None) -> Path:
        """Write an attempt, whole or not at all, and return its folder.

        Args:
            scratch: holds the weights of a published one, which are moved out of it.

        Raises:
            ArtifactError: a published one lacks its weights, or its name is taken.
        """
        target = self.folder / attempt.name
        if attempt.published and (scratch is None or not all((scratch / name).is_file() for name in WEIGHTS)):
            raise ArtifactError(f"adapter {attempt.name} lacks {' or '.join(WEIGHTS)}")
        if target.exists():
            raise ArtifactError(f"adapter {attempt.name} is there already, under {self.folder}")
        with written_whole(target) as made:
            made.mkdir()
            if attempt.published and scratch is not None:
                for name in WEIGHTS:
                    (scratch / name).rename(made / name)
            (made / RECORD).write_text(attempt.model_dump_json(indent=2))
        return target

    def deploy(self, deployed: Deployed) -> None:
        """Append to the log, on the disk when this returns. One write: a reader sees a line whole or not at all."""
        self._log.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            # The first newline ends a line that a full disk has torn.
            os.write(handle, b"\n" + deployed.model_dump_json().encode() + b"\n")
            os.fsync(handle)
        finally:
            os.close(handle)
        sync(self._log.parent)

    def log(self, since: float = 0.0) -> list[Deployed]:
        """Return what was put into use at or after `since` (wall clock), oldest first; torn lines are passed over."""
        try:
            lines = self._log.read_bytes().splitlines()
        except FileNotFoundError:
            return []
        out = []
        for line in lines:
            try:
                deployed = Deployed.model_validate_json(line)
            except ValidationError:
                continue
            if deployed.update.published_at >= since:
                out.append(deployed)
        return out

    def in_use(self) -> ModelUpdate:
        """Return what a process that starts now uses.

        Raises:
            ArtifactError: nothing was fitted yet.
        """
        return self._stack()[-1]

    def select(self, version: str, now: float) -> ModelUpdate:
        """Make a fitted version the current one, with the adapter it had last, and return the update that says so.

        Raises:
            ArtifactError: there is no such version.
        """
        self.registry.select(version)
        update = self.in_use().model_copy(update={"published_at": now})
        self.deploy(Deployed(update=update, by="select"))
        return update

    def roll_back(self, now: float, reason: str = "") -> ModelUpdate:
        """Put what was in use before into use again, and return the update that tells running roles.

        Below an adapter is the one before it, below the first the fitted version itself, below that the version fitted
        before. Knowledge made by what is rolled back is not used any more.

        Raises:
            ArtifactError: there is nothing before.
        """
        stack = self._stack()
        current = stack[-1]
        if len(stack) == 1:
            versions = self.registry.versions()
            place = versions.index(current.model_version)
            if place == 0:
                raise ArtifactError(f"{current.model_version} is in use and there is nothing before it to go back to")
            return self.select(versions[place - 1], now)
        withdrawn = {current.model_version, *current.withdrawn}
        update = stack[-2].model_copy(update={"published_at": now, "withdrawn": sorted(withdrawn)})
        self.deploy(Deployed(update=update, by="rollback", reason=reason))
        return update

    def _stack(self) -> list[ModelUpdate]:
        fitted = self.registry.open()
        return history(
            ModelUpdate(model_version=fitted.model_version, published_at=fitted.card.created_at),
            self.log(fitted.card.created_at))


def base_of(model_version: str) -> str:
    """Return the fitted version of a version, which may be an adapter's."""
    return model_version.split("+", maxsplit=1)[0]


def history(fitted: ModelUpdate, log: Sequence[Deployed]) -> list[ModelUpdate]:
    """Return what is in use (last) and, before it, what each further rollback would bring back.

    Args:
        fitted: the current fitted version, without an adapter.
        log: oldest first; lines of other fitted versions do not count.
    """
    stack = [fitted]
    for deployed in log:
        if base_of(deployed.update.model_version) != fitted.model_version:
            continue
        if deployed.by == "alignment":
            stack.append(deployed.update.model_copy(update={"withdrawn": stack[-1].withdrawn}))
        elif deployed.by == "rollback" and len(stack) > 1:
            stack.pop()
            stack[-1] = stack[-1].model_copy(update={"withdrawn": deployed.update.withdrawn})
    return stack
