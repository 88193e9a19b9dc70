"""The ranking model in use and its item ids. A model update replaces both at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from models.evidence.item_knowledge import ItemKnowledge
from models.evidence.later import Described
from models.serving.bake import Ranking, load_ranking
from schemas.artifacts import Artifact, Registry
from schemas.deployments import adapter_folder, base_of
from schemas.errors import ArtifactError
from schemas.messages import ModelUpdate
from schemas.settings import Settings
from workers.catalogue.view import Catalogue, Entry
from workers.home.titles import TITLES
from workers.store.item_files import item_texts, known_items, popular_before, written_texts


class Ranker:
    """A model version loaded for ranking, and the catalogue.

    Attributes:
        model: computes scores.
        catalogue: the items in row order, the model's own first.
        withheld: (items,) bool, items that may be in no list; None = there are none.
        unread: rows of items that came after the fit, with their texts, of which the model knows nothing yet.
        epsilon: the calibrated trust radius at full trust, nats.
        has_knowledge: whether the model uses knowledge of users.
        written: what a language model wrote of the items, in row order; [] = nothing.
        popular: how popular items were at the end of the data that the model was fitted on, by item id.
    """

    def __init__(
        self, model: Ranking, items: list[str], model_version: str, epsilon: float, registry: Registry | None = None,
        *, has_knowledge: bool = True, written: list[str] | None = None, texts: Sequence[str] = (),
        titles: Sequence[str] = (), popular: Mapping[str, float] | None = None,
        known: Callable[[], ItemKnowledge] | None = None,
    ) -> None:
        self._registry = registry
        # 10 MB with 12,000 items, of no use before an item comes.
        self._items_known: ItemKnowledge | None = None
        self._known = known or (lambda: ItemKnowledge(texts or [""] * len(items)))
        self.popular = dict(popular or {})
        self._withdrawn: frozenset[str] = frozenset()
        self._put(model, Catalogue(items, texts, titles), model_version, epsilon, has_knowledge, written or [])

    @classmethod
    def load(cls, settings: Settings) -> Ranker:
        """Return the registry's current model.

        Raises:
            ArtifactError: there is no model, or it is damaged.
        """
        registry = Registry(settings.home)
        artifact = registry.open()
        calibration = artifact.calibration()
        return cls(load_ranking(artifact), artifact.items(), artifact.model_version, calibration.epsilon, registry,
                   has_knowledge=calibration.knowledge, written=written_texts(artifact), texts=item_texts(artifact),
                   titles=item_texts(artifact, TITLES), popular=popular_before(artifact),
                   known=lambda: known_items(artifact))

    @property
    def dim(self) -> int:
        """Width of the knowledge vectors that the model reads."""
        return self.model.dim

    @property
    def items(self) -> list[str]:
        """Item ids in row order."""
        return self.catalogue.items

    def row(self, item: str) -> int:
        """Return an item's row, or −1 for an unknown item."""
        row = self.catalogue.rows.get(item, -1)
        return row if row < self.model.n_items else -1

    def take(self, entries: Sequence[Entry]) -> None:
        """Take what came on the topic `catalogue`: lists made from now on follow it."""
        if entries:
            rows = self.catalogue.apply(entries)
            self._grow(rows)
            self._withhold()

    def read(self, rows: Sequence[int], new: Described, similar: Sequence[Mapping[str, float]]) -> None:
        """Take what is known of items that came after the fit: lists made from now on can hold them for a reason.

        Args:
            rows: m of `unread`.
            new: their texts and encodings.
            similar: (m,) similar items of the fit, by id.
        """
        rows_of = self.catalogue.rows
        self.model.put(rows, new, [
            {rows_of[item]: score for item, score in one.items() if item in rows_of} for one in similar])
        for row in rows:
            self.unread.pop(row, None)

    @property
    def encoded_dim(self) -> int:
        """Width of the sentence encodings; 0 = the version has none."""
        encoded = self._known_once().encoded
        return 0 if encoded is None else encoded.shape[1]

    def _known_once(self) -> ItemKnowledge:
        if self._items_known is None:
            self._items_known = self._known()
        return self._items_known

    def _grow(self, rows: Sequence[int]) -> None:
        """Make room for what came, of whose `rows` the texts are still to be read."""
        if len(self.catalogue) > self.model.n_items:
            self.model.grow(len(self.catalogue), self._known_once)
        for row in rows:
            self.unread.pop(row, None)
            if row >= self.catalogue.fitted and row < self.model.n_items and (text := self.catalogue.entries[row].text):
                self.unread[row] = text

    def _withhold(self) -> None:
        mask = ~self.catalogue.available[: self.model.n_items]
        self.withheld = torch.from_numpy(mask) if mask.any() else None

    def compatible(self, model_version: str) -> bool:
        """Return whether knowledge of that version is used: made by this model or an adapter of it, not withdrawn."""
        return model_version not in self._withdrawn and (
            base_of(model_version) == self.model_version or model_version in self._compatible)

    def apply(self, update: ModelUpdate) -> None:
        """Load the version that an update names.

        If the update only changes the adapter, the ranking model stays loaded, although the version has a new name.

        Raises:
            FreshetError: the version is missing or damaged; nothing has changed.
        """
        assert self._registry is not None  # noqa: S101 - for the type checker
        if update.adapter is not None:
            adapter_folder(self._registry.folder, update.adapter)  # raises an error if the adapter does not exist
        wanted = base_of(update.model_version)
        known = wanted == self.model_version or update.model_version in self._compatible
        if not known and (
                update.adapter is None or "+" in update.model_version or wanted in self._registry.versions()):
            self._load(self._registry.open(wanted))
        self._compatible.add(update.model_version)
        self._withdrawn = frozenset(update.withdrawn)

    def _load(self, artifact: Artifact) -> None:
        model, items = load_ranking(artifact), artifact.items()
        if model.dim != self.dim:
            raise ArtifactError(f"model {artifact.model_version} is {model.dim} wide, but the store and the model in "
                                f"use are {self.dim} wide; restart with another store to change the width")
        calibration = artifact.calibration()
        catalogue = self.catalogue.rebased(items, item_texts(artifact), item_texts(artifact, TITLES))
        self._known = lambda: known_items(artifact)
        self._put(model, catalogue, artifact.model_version, calibration.epsilon, calibration.knowledge,
                  written_texts(artifact))

    def quotes(self, items: list[str]) -> dict[str, str]:
        """Return what was written of items, by item id, of those of which something was."""
        rows = {item: self.catalogue.rows[item] for item in items}
        return {item: text for item, row in rows.items() if row < len(self.written) and (text := self.written[row])}

    def _put(
        self, model: Ranking, catalogue: Catalogue, model_version: str, epsilon: float, has_knowledge: bool,
        written: list[str],
    ) -> None:
        self.model = model
        self.catalogue = catalogue
        self.model_version = model_version
        self.epsilon = epsilon
        self.has_knowledge = has_knowledge
        self.written = written
        self.unread: dict[int, str] = {}
        self._items_known = None
        self._grow(range(catalogue.fitted, len(catalogue)))
        self._withhold()
        self._compatible = {model_version}
