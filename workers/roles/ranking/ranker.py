"""The ranking model in use, with the names of its items; swapped whole when another version is published."""

from __future__ import annotations

from models.serving.bake import Ranking, load_ranking
from schemas.artifacts import Artifact, Registry
from schemas.deployments import base_of
from schemas.errors import ArtifactError
from schemas.messages import ModelUpdate
from schemas.settings import Settings
from workers.runtime.model_updates import adapter_folder


class Ranker:
    """A model version loaded for ranking.

    Attributes:
        model: scores.
        items: item ids in row order.
        epsilon: the full trust radius it was calibrated to, nats.
        created_at: when it was fitted, wall clock.
    """

    def __init__(self, model: Ranking, items: list[str], model_version: str, epsilon: float,
                 created_at: float = 0.0, registry: Registry | None = None) -> None:
        self._registry = registry
        self.created_at = created_at
        self._put(model, items, model_version, epsilon)

    @classmethod
    def load(cls, settings: Settings) -> Ranker:
        """Return the registry's current model.

        Raises:
            ArtifactError: there is none, or it is damaged.
        """
        registry = Registry(settings.home)
        artifact = registry.open()
        return cls(load_ranking(artifact), artifact.items(), artifact.model_version,
                   artifact.calibration().epsilon, artifact.card.created_at, registry)

    @property
    def dim(self) -> int:
        """Width of the knowledge vectors it reads."""
        return self.model.dim

    def row(self, item: str) -> int:
        """Return an item's row, −1 for one the model does not know."""
        return self._rows.get(item, -1)

    def compatible(self, model_version: str) -> bool:
        """Return whether knowledge of that version can be read: made by this model, or by an adapter of it."""
        return model_version in self._compatible

    def apply(self, update: ModelUpdate) -> None:
        """Load what an update names. With an adapter the version may be a name of its own: the model stays.

        Raises:
            FreshetError: it is absent or damaged; nothing has changed.
        """
        assert self._registry is not None  # noqa: S101 - for the type checker
        if update.adapter is not None:
            adapter_folder(self._registry.folder, update.adapter)  # knowledge of an adapter nobody has is refused
        wanted = base_of(update.model_version)
        known = wanted == self.model_version or update.model_version in self._compatible
        if not known and (
                update.adapter is None or "+" in update.model_version or wanted in self._registry.versions()):
            self._load(self._registry.open(wanted))
        self._compatible.add(update.model_version)
        self._compatible -= set(update.withdrawn)

    def _load(self, artifact: Artifact) -> None:
        model, items = load_ranking(artifact), artifact.items()
        if model.dim != self.dim:
            raise ArtifactError(f"model {artifact.model_version} is {model.dim} wide, the store and the "
                                f"model in use {self.dim}; restart with another store to change that")
        self._put(model, items, artifact.model_version, artifact.calibration().epsilon)

    def _put(self, model: Ranking, items: list[str], model_version: str, epsilon: float) -> None:
        self.model = model
        self.items = items
        self.model_version = model_version
        self.epsilon = epsilon
        self._rows = {item: row for row, item in enumerate(items)}
        self._compatible = {model_version}
