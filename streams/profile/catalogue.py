"""Item vectors. User interests are averages of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from schemas.artifacts import Artifact
from schemas.errors import ArtifactError


class ItemVectors:
    """Item ids and their unit vectors.

    Every row is scaled to length 1, so that each event has the same weight in an interest; a zero row stays zero. The
    row `unknown` of `vectors` is zero and represents items that the catalogue lacks. Items that come later follow it.

    Args:
        items: n item ids.
        vectors: (n, d) floats, finite, rows in the order of `items`.
    """

    def __init__(self, items: Sequence[str], vectors: NDArray[np.floating]) -> None:
        if vectors.ndim != 2 or len(items) != len(vectors) or not np.isfinite(vectors).all():
            raise ArtifactError(f"item vectors of shape {vectors.shape} do not fit {len(items)} items, or are not "
                                "finite; run `freshet fit` again")
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        unit = np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)
        self.vectors: NDArray[np.float32] = np.concatenate([unit, np.zeros_like(unit[:1], shape=(1, unit.shape[1]))]
                                                           ).astype(np.float32)
        self.rows: dict[str, int] = {item: row for row, item in enumerate(items)}
        self.unknown = len(items)
        self.dim = int(vectors.shape[1])

    def add(self, similar: Mapping[str, Mapping[str, float]]) -> None:
        """Give items that came after the fit, or another text of them, the mean of the fit's most similar ones.

        Items of the fit keep their vectors, and one without similar items stays unknown.

        Args:
            similar: item id → ids of items of the fit and how similar they are.
        """
        made = {}
        for item, near in similar.items():
            inside = {row: weight for other, weight in near.items()
                      if (row := self.rows.get(other, self.unknown)) < self.unknown and weight > 0}
            if inside and self.rows.get(item, self.unknown + 1) > self.unknown:
                mean = np.array(list(inside.values()), np.float32) @ self.vectors[list(inside)]
                made[item] = mean / max(float(np.linalg.norm(mean)), 1e-9)
        new = [item for item in made if item not in self.rows]
        for item in new:
            self.rows[item] = len(self.rows) + 1
        if new:  # rooms for more would be twice the memory
            self.vectors = np.concatenate([self.vectors, np.zeros((len(new), self.dim), np.float32)])
        for item, vector in made.items():
            self.vectors[self.rows[item]] = vector

    @classmethod
    def load(cls, artifact: Artifact) -> ItemVectors:
        """Return the vectors of a fitted model: key "items" of its interest.safetensors."""
        tensors = load_file(artifact.path("interest.safetensors"))
        if "items" not in tensors:
            raise ArtifactError(f"model {artifact.model_version}: interest.safetensors has no tensor 'items'; "
                                "run `freshet fit` again")
        return cls(artifact.items(), tensors["items"].astype(np.float32))
