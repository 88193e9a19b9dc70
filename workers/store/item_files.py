"""Item knowledge among a model version's files: encodings and written texts, in the order of its items."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import overload

import msgspec
import numpy as np
import orjson
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from models.evidence.item_knowledge import ItemKnowledge
from schemas.artifacts import Artifact
from schemas.errors import ArtifactError
from workers.store.items import ItemPoint

VECTORS, WRITTEN, TEXTS, POPULAR = "item_vectors.safetensors", "item_written.json", "texts.json", "popular.json"


def save_items(
    folder: Path, written: Sequence[str] | None, encoded: NDArray[np.float32] | None, encoder: str,
) -> None:
    """Write the files of a version that is being published; nothing for a part that is not there.

    Args:
        written: (n,) texts, "" = nothing was written of the item.
        encoded: (n, d) rows of unit length or zero.
        encoder: the sentence encoder's name.
    """
    if encoded is not None:
        save_file({"items": encoded.astype(np.float16)}, folder / VECTORS, {"encoder": encoder})
    if written is not None and any(written):
        (folder / WRITTEN).write_bytes(orjson.dumps(list(written)))


def written_texts(artifact: Artifact) -> list[str]:
    """Return what was written of the items of a version, in row order; [] if nothing was.

    Raises:
        ArtifactError: the file is not a list of texts.
    """
    return _texts(artifact, WRITTEN) if WRITTEN in artifact.card.files else []


def item_texts(artifact: Artifact, name: str = TEXTS) -> list[str]:
    """Return the catalogue's texts of the items of a version, in row order; [] for a version without them.

    Args:
        name: of the file.

    Raises:
        ArtifactError: the file is not a list of texts.
    """
    return _texts(artifact, name) if name in artifact.card.files else []


def popular_before(artifact: Artifact) -> dict[str, float]:
    """Return how popular items were when the version was fitted, by item id; {} for one that does not say.

    Raises:
        ArtifactError: the file holds no numbers.
    """
    if POPULAR not in artifact.card.files:
        return {}
    try:
        return msgspec.json.decode(artifact.path(POPULAR).read_bytes(), type=dict[str, float])
    except msgspec.MsgspecError as error:
        raise ArtifactError(f"model {artifact.model_version}: {POPULAR} is damaged: {error}") from error


def known_items(artifact: Artifact) -> ItemKnowledge:
    """Return what a version knows of its items.

    Raises:
        ArtifactError: the files are inconsistent.
    """
    texts = item_texts(artifact)
    try:
        vectors = load_file(artifact.path(VECTORS))["items"] if VECTORS in artifact.card.files else None
        return ItemKnowledge(texts, written_texts(artifact) or None, vectors)
    except (SafetensorError, KeyError, ValueError) as error:
        raise ArtifactError(f"model {artifact.model_version}: {VECTORS} is damaged: {error}") from error


def encoder_of(artifact: Artifact) -> str:
    """Return the name of the sentence encoder that a version's encodings are of; "" = it has none."""
    if VECTORS not in artifact.card.files:
        return ""
    with safe_open(artifact.path(VECTORS), "np") as file:
        return str((file.metadata() or {}).get("encoder", ""))


class ItemPoints(Sequence[ItemPoint]):
    """The points of a version's items with an encoding, made as they are read.

    Args:
        artifact: the version.
        encoder: the sentence encoder's name.

    Raises:
        ArtifactError: the files are inconsistent.
    """

    def __init__(self, artifact: Artifact, encoder: str = "") -> None:
        self._version, self._encoder = artifact.model_version, encoder
        self._fitted_at = artifact.card.created_at
        self._items, self._texts, self._written = artifact.items(), _texts(artifact, TEXTS), written_texts(artifact)
        self._vectors = np.zeros((len(self._items), 0), np.float16)
        if VECTORS in artifact.card.files:
            try:
                self._vectors = load_file(artifact.path(VECTORS))["items"]
            except (SafetensorError, KeyError) as error:
                raise ArtifactError(f"model {artifact.model_version}: {VECTORS} is damaged: {error}") from error
        if {len(self._texts), len(self._vectors), len(self._written or self._items)} != {len(self._items)}:
            raise ArtifactError(f"model {artifact.model_version} has item knowledge of other items")
        self._rows = np.flatnonzero(self._vectors.any(1))

    @property
    def dim(self) -> int:
        """Width of the encodings; 0 = the version has none."""
        return int(self._vectors.shape[1])

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, at: int) -> ItemPoint: ...

    @overload
    def __getitem__(self, at: slice) -> list[ItemPoint]: ...

    def __getitem__(self, at: int | slice) -> ItemPoint | list[ItemPoint]:
        if isinstance(at, slice):
            return [self._point(row) for row in self._rows[at].tolist()]
        return self._point(int(self._rows[at]))

    def _point(self, row: int) -> ItemPoint:
        return ItemPoint(
            self._items[row], round(1000 * self._fitted_at), self._version, self._vectors[row].astype(np.float32),
            self._texts[row], self._written[row] if self._written else "", self._encoder, self._fitted_at)


def _texts(artifact: Artifact, name: str) -> list[str]:
    try:
        texts = orjson.loads(artifact.path(name).read_bytes())
    except orjson.JSONDecodeError as error:
        raise ArtifactError(f"model {artifact.model_version}: {name} is not JSON") from error
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ArtifactError(f"model {artifact.model_version}: {name} is not a list of texts")
    return texts
