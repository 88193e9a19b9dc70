"""LoRA adapters of the fitted models, the log of deployments, and which version is in use.

`models/adapters/<name>/` contains one attempt at fine-tuning the language model: `alignment.json` has the outcome, and
a published attempt also has peft's two files (safetensors, no pickle).

What is in use is decided by two files that all roles follow, on one host or on a shared volume: `models/CURRENT` names
the fitted version, and `models/deployed.jsonl`, with one line per deployment, its adapter, what was in use before and
what is withdrawn. A message on `model-updates` only says that there is something new.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import orjson
from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from schemas.artifacts import Registry
from schemas.errors import ArtifactError, FreshetError, NewerFormatError
from schemas.files import sync, written_whole
from schemas.messages import ModelUpdate

LINE_VERSION = 1
_LOCK_S = 30.0  # it is held while a rollback checks the hashes of files: 0.5 s per GB
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

    schema_version: int = LINE_VERSION
    update: ModelUpdate
    by: Literal["fit", "select", "alignment", "rollback", "message"]
    left: str = Field(default="", description="model version that a rollback withdrew; empty in lines of old releases")
    author: str = Field(default="", description="who did it: a role or a user of this machine")
    reason: str = ""


class Deployments:
    """The attempts, the log of deployments, and what is in use under `home`.

    All roles follow `in_use`; everything that changes it goes through this class, one process at a time.
    """

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

    def log(self) -> list[Deployed]:
        """Return all deployments, oldest first; damaged lines are skipped.

        Raises:
            NewerFormatError: a newer release wrote a line, so what is in use cannot be known.
        """
        try:
            lines = self._log.read_bytes().splitlines()
        except FileNotFoundError:
            return []
        out = []
        for line in lines:
            try:
                deployed = Deployed.model_validate_json(line)
            except ValidationError:
                if _version(line) <= LINE_VERSION:
                    continue
                raise NewerFormatError(f"a line of {self._log}", _version(line), LINE_VERSION) from None
            if deployed.schema_version > LINE_VERSION:
                raise NewerFormatError(f"a line of {self._log}", deployed.schema_version, LINE_VERSION)
            out.append(deployed)
        return out

    def signature(self) -> tuple[object, ...]:
        """Return what changes whenever `in_use` may have changed; it is cheap to ask for."""
        out: list[object] = []
        for path in (self.registry.folder / "CURRENT", self._log):
            try:
                found = path.stat()
            except FileNotFoundError:
                out.append(None)
            else:
                out.append((found.st_ino, found.st_size, found.st_mtime_ns))
        return tuple(out)

    def in_use(self) -> ModelUpdate:
        """Return the version in use, with its adapter, and the versions that are withdrawn.

        Only the card is read: a role checks the files when it loads them.

        Raises:
            ArtifactError: there is no fitted model.
            NewerFormatError: a newer release wrote what is there.
        """
        card = self.registry.card(self.registry.current())
        return DeploymentHistory.of(self.log(), card.model_version, card.created_at).in_use()

    def withdrawn(self) -> dict[str, Deployed]:
        """Return the rollback that withdrew each version which is still withdrawn."""
        log = self.log()
        out = DeploymentHistory.of(log, self._current(), 0.0).withdrawn
        return {line.left: line for line in log if line.by == "rollback" and line.left in out}

    def fitted(self, version: str, now: float) -> ModelUpdate:
        """Put a version that was just fitted into use.

        Raises:
            ArtifactError: there is no such version.
        """
        return self._choose(version, now, by="fit", author="freshet fit")

    def select(self, version: str, now: float, author: str = "") -> ModelUpdate:
        """Put a fitted version into use, with its last adapter, and return the update for running roles.

        It is no longer withdrawn if it was.

        Raises:
            ArtifactError: there is no such version, or a file of it is damaged.
        """
        self.registry.open(version)
        return self._choose(version, now, by="select", author=author)

    def _choose(self, version: str, now: float, by: Literal["fit", "select"], author: str) -> ModelUpdate:
        with self._alone():
            card = self.registry.card(version)
            history = DeploymentHistory.of(self.log(), self._current(), card.created_at)
            history.take_into_use(version)
            update = history.in_use(card.created_at, published_at=history.after(now))
            self._write(Deployed(update=update, by=by, author=author))
        return update

    def publish_adapter(self, attempt: Attempt, now: float) -> ModelUpdate | None:
        """Put an adapter into use and return the update, or None if its fitted version is no longer in use.

        Then it will be used when that version is put into use again.
        """
        with self._alone():
            card = self.registry.card(attempt.base)
            history = DeploymentHistory.of(self.log(), self._current(), card.created_at)
            update = ModelUpdate(
                model_version=attempt.model_version, adapter=attempt.adapter, published_at=history.after(now),
                withdrawn=sorted(history.withdrawn))
            self._append(Deployed(update=update, by="alignment", author="alignment", reason=attempt.reason))
        return update if history.current == attempt.base else None

    def take_over(self, update: ModelUpdate) -> bool:
        """Put into use what a message names, if it is newer than everything here; return whether it was.

        An update that was made here is never newer. This is for updates of other programs and of other hosts whose
        folder of models is a copy.

        Raises:
            ArtifactError: the version or its adapter is not here (yet).
        """
        with self._alone():
            history = DeploymentHistory.of(self.log(), self._current(), 0.0)
            base = base_of(update.model_version)
            if update.published_at <= max(history.newest, self._created_at()):
                return False
            card = self.registry.card(base)
            if update.adapter is not None:
                adapter_folder(self.registry.folder, update.adapter)
            if update.published_at <= card.created_at:
                return False
            self._write(Deployed(update=update, by="message"))
        return True

    def roll_back(
        self, now: float, reason: str = "", author: str = "", harmful: Collection[str] = (),
    ) -> ModelUpdate:
        """Go back to what was in use before and return the update for running roles.

        An adapter goes back to the adapter before it, the first adapter to the fitted version, a fitted version to the
        one in use before it or, where the log does not say, to the newest one fitted before it. The version left is
        withdrawn: its knowledge is no longer used, and no rollback chooses it again. Damaged versions are passed over.

        Args:
            harmful: versions not to go back to.

        Raises:
            ArtifactError: there is no intact version to go back to; nothing has changed.
        """
        with self._alone():
            card = self.registry.card(self.registry.current())
            history = DeploymentHistory.of(self.log(), card.model_version, card.created_at)
            left = history.in_use()
            damaged: list[str] = []
            for update in self._earlier(history, left):
                if update.model_version in harmful:
                    continue
                try:
                    self._check(update)
                except (FreshetError, OSError) as error:
                    damaged.append(str(error))
                    continue
                return self._withdraw(history, left.model_version, update, now, reason, author)
        raise ArtifactError("; ".join([
            f"{left.model_version} is in use and there is no version before it" + (" that can be used" if damaged or
            harmful else ""), *damaged]))

    def withdraw(self, version: str, now: float, reason: str = "", author: str = "") -> ModelUpdate:
        """Withdraw a version that is not in use, and return the update for running roles: what is in use stays."""
        with self._alone():
            card = self.registry.card(self.registry.current())
            history = DeploymentHistory.of(self.log(), card.model_version, card.created_at)
            return self._withdraw(history, version, history.in_use(), now, reason, author)

    def _withdraw(
        self, history: DeploymentHistory, left: str, update: ModelUpdate, now: float, reason: str, author: str,
    ) -> ModelUpdate:
        update = update.model_copy(update={
            "published_at": history.after(now), "withdrawn": sorted({*history.withdrawn, left})})
        self._write(Deployed(update=update, by="rollback", left=left, author=author, reason=reason))
        return update

    def _earlier(self, history: DeploymentHistory, left: ModelUpdate) -> Iterator[ModelUpdate]:
        """Yield what may be in use instead of `left`, best first."""
        yield from history.stack(history.current)[-2::-1] if left.adapter is not None else ()
        versions = self.registry.versions()
        current = versions.index(history.current)
        for base in dict.fromkeys([*reversed(history.bases), *versions[current::-1]]):
            if base not in {history.current, *history.withdrawn} and base in versions:
                try:
                    created_at = self.registry.card(base).created_at
                except FreshetError:
                    created_at = 0.0
                yield from history.stack(base, created_at)[::-1]

    def _check(self, update: ModelUpdate) -> None:
        self.registry.open(base_of(update.model_version))
        if update.adapter is not None:
            folder = adapter_folder(self.registry.folder, update.adapter)
            if missing := [name for name in WEIGHTS if not (folder / name).is_file()]:
                raise ArtifactError(f"{folder} lacks {' and '.join(missing)}")

    def _current(self) -> str:
        try:
            return self.registry.current()
        except ArtifactError:
            return ""

    def _created_at(self) -> float:
        try:
            return self.registry.card(self.registry.current()).created_at
        except ArtifactError:
            return 0.0

    def _write(self, deployed: Deployed) -> None:
        """Note a deployment and point to its fitted version.

        The line comes first: if the process ends in between, the version that was in use stays in use, and the pointer
        decides (`DeploymentHistory.of`).
        """
        self._append(deployed)
        self.registry.select(base_of(deployed.update.model_version))

    def _append(self, deployed: Deployed) -> None:
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

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Let one process at a time read what is in use and change it.

        Raises:
            ArtifactError: another process does not finish.
        """
        self.registry.folder.mkdir(parents=True, exist_ok=True)
        lock = self.registry.folder / ".deployments.lock"
        try:
            with FileLock(lock, timeout=_LOCK_S):
                yield
        except Timeout as error:
            raise ArtifactError(f"another process holds {lock} for more than {_LOCK_S:g} s; is it stopped?") from error


class DeploymentHistory:
    """What a log of deployments says: which fitted versions were in use, with which adapters, and what is withdrawn.

    Attributes:
        bases: fitted versions in the order in which they came into use, withdrawn ones left out.
        current: the fitted version in use; "" = none.
        withdrawn: model versions that were rolled back and not chosen again.
        newest: time of the newest deployment, wall clock, seconds.
    """

    def __init__(self, created_at: float = 0.0) -> None:
        self.bases: list[str] = []
        self.current = ""
        self.withdrawn: set[str] = set()
        self.newest = created_at
        self._created_at = created_at
        self._adapters: dict[str, list[ModelUpdate]] = {}

    @classmethod
    def of(cls, log: Iterable[Deployed], current: str, created_at: float) -> DeploymentHistory:
        """Return the history that a log tells.

        Args:
            log: in the order of its lines, which no clock decides.
            current: the fitted version that the registry points to. It may differ from the last line's: an earlier
                release, a restored backup or a crash may have changed one without the other.
            created_at: when that version was fitted; adapters published before are ignored.
        """
        out = cls(created_at)
        for deployed in log:
            out._apply(deployed)
        out.take_into_use(current, chosen=False)
        return out

    def _apply(self, deployed: Deployed) -> None:
        update = deployed.update
        base = base_of(update.model_version)
        self.newest = max(self.newest, update.published_at)
        if deployed.by == "rollback":
            self.withdrawn |= {*update.withdrawn, *([deployed.left] if deployed.left else [])}
            self.bases = [version for version in self.bases if version not in self.withdrawn]
            self.take_into_use(base, chosen=False)
            # Adapters that the rollback passed over, because they are damaged, are not used either.
            made = [earlier.model_version for earlier in self._adapters.get(base, [])]
            kept = made.index(update.model_version) + 1 if update.model_version in made else 0
            self._adapters[base] = self._adapters.get(base, [])[:kept]
            return
        if deployed.by != "alignment":
            self.take_into_use(base)
        if deployed.by == "message":
            self.withdrawn = (self.withdrawn | set(update.withdrawn)) - {update.model_version}
            if update.adapter is None:
                self._adapters.pop(base, None)
        if update.adapter is not None and deployed.by in ("alignment", "message"):
            self._adapters.setdefault(base, []).append(update)

    def take_into_use(self, base: str, *, chosen: bool = True) -> None:
        """Make `base` the version in use; if it was chosen, it is no longer withdrawn."""
        if not base:
            return
        if chosen:
            self.withdrawn.discard(base)
        if base != self.current or self.bases[-1:] != [base]:
            self.bases.append(base)
        self.current = base

    def stack(self, base: str, created_at: float | None = None) -> list[ModelUpdate]:
        """Return what a fitted version may be used with, the last adapter last: first itself, then its adapters.

        Withdrawn ones are left out.
        """
        since = self._created_at if created_at is None else created_at
        fitted = ModelUpdate(model_version=base, published_at=since)
        return [update.model_copy(update={"withdrawn": sorted(self.withdrawn - {update.model_version})})
                for update in (fitted, *self._adapters.get(base, []))
                if update.model_version not in self.withdrawn and update.published_at >= since]

    def in_use(self, created_at: float | None = None, published_at: float | None = None) -> ModelUpdate:
        """Return the version in use with its adapter."""
        since = self._created_at if created_at is None else created_at
        stack = self.stack(self.current, since) or [ModelUpdate(
            model_version=self.current, published_at=since, withdrawn=sorted(self.withdrawn - {self.current}))]
        return stack[-1] if published_at is None else stack[-1].model_copy(update={"published_at": published_at})

    def after(self, now: float) -> float:
        """Return `now`, or a time after the newest deployment if this machine's clock is behind another's."""
        return max(now, self.newest + 0.001)


def base_of(model_version: str) -> str:
    """Return the fitted version of a model version, without its adapter if it has one."""
    return model_version.split("+", maxsplit=1)[0]


def adapter_folder(registry: Path, name: str) -> Path:
    """Return the folder of a LoRA adapter in the registry.

    Raises:
        ArtifactError: it is absent or outside the registry.
    """
    folder = (registry / name).resolve()
    if not folder.is_relative_to(registry.resolve()):
        raise ArtifactError(f"adapter {name!r} is outside the model registry {registry}")
    if not folder.is_dir():
        raise ArtifactError(f"adapter {name!r} is not in the model registry {registry}")
    return folder


def _version(line: bytes) -> int:
    """Return the format of a line that cannot be read, 0 if it is not even JSON."""
    try:
        return int(orjson.loads(line)["schema_version"])
    except (orjson.JSONDecodeError, TypeError, KeyError, ValueError):
        return 0
