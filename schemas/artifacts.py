"""Fitted models on disk: versioned folders with a card of file hashes, published atomically.

A folder contains `card.json`, `calibration.json`, `items.json` (item ids in row order), `interest.safetensors` (the
item vectors that user interests are averages of) and the models' own `*.safetensors`. Nothing is pickled.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from schemas.calibration import CALIBRATION_VERSION, Calibration, Recalibration, Worth
from schemas.errors import ArtifactError, FreshetError, NewerFormatError
from schemas.events import describe
from schemas.files import write_whole, written_whole

CARD_VERSION = 1
_LONGEST = 200  # bytes of a version's name: file systems take 255


class Card(BaseModel):
    """The metadata of a model folder."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    schema_version: int = CARD_VERSION
    model_version: str
    created_at: float
    sequence: int = Field(default=0, ge=0, description="number of the fit in its registry, from 1; 0 = not recorded")
    data_hash: str = Field(description="of the events and items it was fitted on")
    settings: dict[str, Any] = Field(description="the settings it was fitted with, secrets excluded")
    metrics: dict[str, float] = Field(default_factory=dict)
    parts: list[Worth] = Field(default_factory=list, description="what each part adds on held-out events")
    revision: str = Field(default="", description="git revision of the code, if known")
    split_time: float = Field(description="event time of the last event fitted on")
    files: dict[str, str] = Field(description="name → SHA-256")

    @property
    def system(self) -> str:
        """The fitted system, a row of the table of systems. Cards without this setting are Freshet's."""
        return str(self.fit.get("system", "freshet"))

    @property
    def fit(self) -> dict[str, Any]:
        """The settings of `freshet fit`; empty if the card has none."""
        fit = self.settings.get("fit")
        return fit if isinstance(fit, dict) else {}

    @property
    def order(self) -> tuple[int, float, str]:
        """What versions are ordered by, oldest first.

        Not by the time of a file, which a copy or a restored backup changes, and by the clock only where an earlier
        release recorded no number.
        """
        return self.sequence, self.created_at, self.model_version


class Artifact:
    """A published model folder whose files match their hashes."""

    def __init__(self, folder: Path, card: Card) -> None:
        self.folder = folder
        self.card = card

    @property
    def model_version(self) -> str:
        """The version, equal to the folder's name."""
        return self.card.model_version

    def path(self, name: str) -> Path:
        """Return the path of a file of the artifact.

        Raises:
            ArtifactError: the card does not list it.
        """
        if name not in self.card.files:
            raise ArtifactError(f"model {self.model_version} has no {name}; run `freshet fit` again")
        return self.folder / name

    def calibration(self) -> Calibration:
        """Return the thresholds fitted with this model, with the recalibrated drift threshold if there is one.

        Raises:
            ArtifactError: the recalibration is unreadable or belongs to another calibration.json.
        """
        fitted = self.fitted_calibration()
        try:
            recalibration = Recalibration.model_validate_json(self.recalibration.read_bytes())
        except FileNotFoundError:
            return fitted
        except ValidationError as error:
            raise ArtifactError(f"{self.recalibration}: {describe(error)}; `freshet calibrate` rewrites it, "
                                "`freshet calibrate --reset` removes it") from error
        if recalibration.schema_version > CALIBRATION_VERSION:
            raise NewerFormatError(str(self.recalibration), recalibration.schema_version, CALIBRATION_VERSION)
        if recalibration.calibration_hash != self.card.files["calibration.json"]:
            raise ArtifactError(f"{self.recalibration} was made for another fit; `freshet calibrate` rewrites it, "
                                "`freshet calibrate --reset` removes it")
        return recalibration.apply(fitted)

    def fitted_calibration(self) -> Calibration:
        """Return the thresholds as fitted, without the result of `freshet calibrate`.

        Raises:
            ArtifactError: the file was written by an incompatible release.
            NewerFormatError: a newer release wrote it.
        """
        path = self.path("calibration.json")
        try:
            out = Calibration.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise ArtifactError(f"{path}: {describe(error)}; run `freshet fit` again") from error
        if out.schema_version > CALIBRATION_VERSION:
            raise NewerFormatError(str(path), out.schema_version, CALIBRATION_VERSION)
        return out

    @property
    def recalibration(self) -> Path:
        """The result of `freshet calibrate`. It lies next to the model folder, which never changes."""
        return self.folder.parent / f"{self.model_version}.drift.json"

    def items(self) -> list[str]:
        """Return the item ids in row order.

        Raises:
            ArtifactError: the file is not a list of texts.
        """
        path = self.path("items.json")
        try:
            items = orjson.loads(path.read_bytes())
        except orjson.JSONDecodeError as error:
            raise ArtifactError(f"{path} is not JSON: {error}; run `freshet fit` again") from error
        if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
            raise ArtifactError(f"{path} is not a list of item ids; run `freshet fit` again")
        return items


class Registry:
    """The folder of all model versions, and the file that names the current one."""

    def __init__(self, home: Path) -> None:
        self.folder = home / "models"

    def versions(self) -> list[str]:
        """Return the published versions, oldest first by their cards; those with an unreadable card come first."""
        cards = {name: self._readable(name) for name in self._folders()}
        order = {name: (-1, 0.0, name) if card is None else card.order for name, card in cards.items()}
        return sorted(cards, key=lambda name: order[name])

    def next_sequence(self) -> int:
        """Return the number of the next fit."""
        cards = [self._readable(name) for name in self._folders()]
        return 1 + max((card.sequence for card in cards if card is not None), default=0)

    def card(self, version: str) -> Card:
        """Return a version's card without looking at its other files.

        Raises:
            ArtifactError: there is no such version.
            NewerFormatError: a newer release wrote it.
        """
        path = self.folder / version / "card.json"
        try:
            # It may come from a message or a damaged file: no path, nothing that a file system refuses.
            if not _plain(version):
                raise FileNotFoundError(version)
            card = Card.model_validate_json(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ArtifactError(
                f"no model version {version[:_LONGEST]!r} under {self.folder}; available: {sorted(self._folders())}"
            ) from error
        except ValidationError as error:
            raise ArtifactError(f"{path}: {describe(error)}") from error
        if card.schema_version > CARD_VERSION:
            raise NewerFormatError(str(path), card.schema_version, CARD_VERSION)
        return card

    def _folders(self) -> list[str]:
        return [path.parent.name for path in self.folder.glob("*/card.json") if not path.parent.name.startswith(".")]

    def _readable(self, version: str) -> Card | None:
        try:
            return self.card(version)
        except (FreshetError, OSError):
            return None

    def current(self) -> str:
        """Return the version in use, which every role follows (see `Deployments.in_use` for its adapter).

        Raises:
            ArtifactError: there is no fitted model.
        """
        pointer = self.folder / "CURRENT"
        if not pointer.is_file():
            there = self._folders()
            raise ArtifactError(
                f"none of the models under {self.folder} is in use; run `freshet models --select VERSION`, one of "
                f"{sorted(there)}" if there else
                f"no fitted model under {self.folder}; run `freshet fit --data DIR` or `make demo` first")
        return pointer.read_text(encoding="utf-8", errors="replace").strip()

    def select(self, version: str) -> None:
        """Make `version` the current one, atomically.

        Raises:
            ArtifactError: there is no such version.
        """
        self.card(version)
        write_whole(self.folder / "CURRENT", version.encode())

    def open(self, version: str | None = None) -> Artifact:
        """Return a version (None = the current one) after checking the hash of every file.

        Raises:
            ArtifactError: there is no such version, or a file is missing or changed.
        """
        version = version or self.current()
        folder = self.folder / version
        card = self.card(version)
        for name, digest in card.files.items():
            path = folder / name
            if not _plain(name) or not path.is_file() or file_hash(path) != digest:
                raise ArtifactError(f"{path} is missing or does not match its hash; run `freshet fit` again")
        return Artifact(folder, card)

    @contextmanager
    def publish(self, version: str) -> Iterator[Path]:
        """Yield a scratch folder that becomes `version` when the block ends without an error.

        The block writes its files and calls `write_card` last.

        Raises:
            ArtifactError: there is no card, or there is such a version already: roles may be reading it.
        """
        target = self.folder / version
        if target.exists():
            raise ArtifactError(f"model {version} already exists under {self.folder}")
        with written_whole(target) as scratch:
            scratch.mkdir()
            yield scratch
            if not (scratch / "card.json").is_file():
                raise ArtifactError(f"model {version} has no card.json")


def _plain(name: str) -> bool:
    return Path(name).name == name and name.isprintable() and len(name.encode(errors="replace")) <= _LONGEST


def write_card(folder: Path, card: Card) -> None:
    """Write `card` into `folder`, with the hash of every file in it."""
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and path.name != "card.json"]
    hashes = {path.name: file_hash(path) for path in files}
    filled = card.model_copy(update={"files": hashes})
    (folder / "card.json").write_bytes(orjson.dumps(filled.model_dump(), option=orjson.OPT_INDENT_2))


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file, hexadecimal."""
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()
