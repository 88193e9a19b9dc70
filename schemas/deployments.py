"""LoRA adapters of the fitted models, and the log of deployments.

`models/adapters/<name>/` contains one attempt at fine-tuning the language model: `alignment.json` has the outcome, and
a published attempt also has peft's two files (safetensors, no pickle). `models/deployed.jsonl` has one line per
deployment. A starting process reads from it which version is in use, a rollback which version was in use before.
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
    name: str = Field(description="name of the folder")
    base: str = Field(description="version of the fitted model")
    started_from: str = Field(default="", description="model version of the adapter it continued from; empty = none")
    created_at: float
    published: bool
    reason: str = Field(description="why it was published or rejected")
    figures: dict[str, float] = Field(default_factory=dict)

    @property
    def model_version(self) -> str:
        """The model version of knowledge made with this adapter."""
        return f"{self.base}+{self.name}"

    @property
    def adapter(self) -> str:
        """The folder, as in `ModelUpdate.adapter`."""
        return f"adapters/{self.name}"


class Deployed(BaseModel):
    """A line of the log: one deployment."""

    update: ModelUpdate
    by: Literal["alignment", "rollback", "select"]
    reason: str = ""


class Deployments:
    """The attempts and the log of deployments under `home`."""

    def __init__(self, home: Path) -> None:
        self.registry = Registry(home)
        self.folder = self.registry.folder / "adapters"
        self._log = self.registry.folder / "deployed.jsonl"

    def attempts(self) -> list[Attempt]:
        """Return all attempts, oldest first; unreadable records are skipped."""
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
        """Yield an empty temporary folder for an adapter; it is removed at the end unless it was renamed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", dir=self.folder, ignore_cleanup_errors=True) as name:
            yield Path(name)

    def record(self, attempt: Attempt, scratch: Path | None = None) -> Path:
        """Write an attempt atomically and return its folder.

        Args:
            scratch: folder with the weights of a published attempt, which are moved out of it.

        Raises:
            ArtifactError: a published attempt lacks weights, or its name is taken.
        """
        target = self.folder / attempt.name
        if attempt.published and (scratch is None or not all((scratch / name).is_file() for name in WEIGHTS)):
            raise ArtifactError(f"adapter {attempt.name} lacks {' or '.join(WEIGHTS)}")
        if target.exists():
            raise ArtifactError(f"adapter {attempt.name} already exists under {self.folder}")
        with written_whole(target) as made:
            made.mkdir()
            if attempt.published and scratch is not None:
                for name in WEIGHTS:
                    (scratch / name).rename(made / name)
            (made / RECORD).write_text(attempt.model_dump_json(indent=2))
        return target

    def deploy(self, deployed: Deployed) -> None:
        """Append a line to the log, on disk when this returns; one write, so that readers never see part of a line."""
        self._log.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            # The first newline ends a line that a full disk may have cut off.
            os.write(handle, b"\n" + deployed.model_dump_json().encode() + b"\n")
            os.fsync(handle)
        finally:
            os.close(handle)
        sync(self._log.parent)

    def log(self, since: float = 0.0) -> list[Deployed]:
        """Return the deployments at or after `since` (wall clock, seconds), oldest first; damaged lines are skipped."""
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
        """Return the version in use, with its adapter.

        Raises:
            ArtifactError: there is no fitted model.
        """
        return self._stack()[-1]

    def select(self, version: str, now: float) -> ModelUpdate:
        """Make a fitted version the current one, with its last adapter, and return the update for running roles.

        Raises:
            ArtifactError: there is no such version.
        """
        self.registry.select(version)
        update = self.in_use().model_copy(update={"published_at": now})
        self.deploy(Deployed(update=update, by="select"))
        return update

    def roll_back(self, now: float, reason: str = "") -> ModelUpdate:
        """Go back to the previous version and return the update for running roles.

        An adapter rolls back to the adapter before it, the first adapter to the fitted version, a fitted version to the
        one fitted before. Knowledge made by the version rolled back is no longer used.

        Raises:
            ArtifactError: there is no previous version.
        """
        stack = self._stack()
        current = stack[-1]
        if len(stack) == 1:
            versions = self.registry.versions()
            index = versions.index(current.model_version)
            if index == 0:
                raise ArtifactError(f"{current.model_version} is in use and there is no version before it")
            return self.select(versions[index - 1], now)
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
    """Return the fitted version of a model version, without its adapter if it has one."""
    return model_version.split("+", maxsplit=1)[0]


def history(fitted: ModelUpdate, log: Sequence[Deployed]) -> list[ModelUpdate]:
    """Return the version in use (last) and, before it, the versions that successive rollbacks would restore.

    Args:
        fitted: the current fitted version, without an adapter.
        log: oldest first; lines of other fitted versions are ignored.
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
