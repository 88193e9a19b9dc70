"""A generative recommender for the ranking worker: next items by beam search within the catalogue's trie.

It has no reference and uses no knowledge. Only items reached by a beam are recommended, so a user with few unseen items
may get fewer than requested, but never an item twice or one outside the catalogue.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.evidence.item_knowledge import ItemKnowledge
from models.evidence.later import Described
from models.generative.scorer import BEAMS, Generative
from models.generative.semantic_ids import SemanticIds
from models.scorers.backbone import pad
from models.serving.ranking_model import CONFIG, write_catalogue
from models.serving.requests import RankBatch, RankResult, known_items
from schemas.artifacts import Artifact
from schemas.errors import ArtifactError

GENERATIVE = "generative.safetensors"


class GenerativeRanking:
    """A trained `Generative` with the interface of `models.serving.ranking_model.RankingModel`."""

    everyone = False

    def __init__(self, model: Generative) -> None:
        self.model = model.eval().requires_grad_(False)

    @property
    def n_items(self) -> int:
        """Size of the catalogue."""
        return self.model.n_items

    @property
    def max_len(self) -> int:
        """Maximum number of items read from a history, the newest ones."""
        return self.model.max_len

    @property
    def dim(self) -> int:
        """Width of the hidden states; the model reads no knowledge."""
        return self.model.dim

    @torch.inference_mode()
    def rank(self, batch: RankBatch) -> RankResult:
        """Generate the next items for a batch of requests. Log-probabilities are over the catalogue with seen items.

        Knowledge is ignored, and no events are judged.
        """
        histories, _ = known_items(batch.histories, self.max_len)
        margins: list[list[float | None]] = [[None] * len(judged) for judged in batch.judged]
        logp = torch.full((len(histories), self.n_items), -torch.inf)
        if histories:
            tokens, lengths = pad(histories, self.max_len)
            hidden = self.model(tokens)[torch.arange(len(histories)), lengths]
            items, found = self.model.beam(hidden, self._excluded(batch), min(self.n_items, max(BEAMS, batch.top)))
            row, place = torch.nonzero(items >= 0, as_tuple=True)
            logp[row, items[row, place]] = found[row, place]
        return RankResult(logp, logp.clone(), margins)

    @property
    def encodes(self) -> bool:
        """Whether an item that comes after the fit needs the encoding of its text: it is never recommended."""
        return False

    def grow(self, size: int, known: Callable[[], ItemKnowledge]) -> None:
        """Do nothing: an item that comes after the fit has no semantic ID."""

    def put(self, rows: Sequence[int], new: Described, similar: Sequence[Mapping[int, float]]) -> None:
        """Do nothing, as `grow`."""

    def _excluded(self, batch: RankBatch) -> tuple[Tensor, Tensor]:
        """Return the pairs (row of the batch, item row) of the items that may not be recommended."""
        withheld = [] if batch.withheld is None else torch.nonzero(batch.withheld).flatten().tolist()
        return replace(batch, seen=[[*items, *withheld] for items in batch.seen]).masked()

    def save(self, folder: Path, items: Sequence[str], texts: Sequence[str]) -> None:
        """Write the model's files (without the artifact's card and calibration) into `folder`.

        Args:
            items, texts: ids and catalogue texts of the items, in row order.
        """
        model = self.model
        save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / GENERATIVE)
        vectors = torch.stack([table(model.codes[:, level]) for level, table in enumerate(model.digits)]).sum(0)
        block: Any = model.decoder
        write_catalogue(folder, items, texts, vectors, {"system": "generative", "generative": {
            "sizes": list(model.ids.sizes), "dim": model.dim, "layers": len(model.encoder), "heads": block.heads,
            "max_len": model.max_len, "dropout": model.dropout}})

    @classmethod
    def load(cls, artifact: Artifact) -> GenerativeRanking:
        """Return the generative model of an artifact.

        Raises:
            ArtifactError: the files are inconsistent.
        """
        try:
            config = dict(orjson.loads(artifact.path(CONFIG).read_bytes())["generative"])
            weights: dict[str, Tensor] = load_file(artifact.path(GENERATIVE))
            model = Generative(SemanticIds(weights["codes"], tuple(config.pop("sizes")), {}), **config)
            model.load_state_dict(weights)
        except (KeyError, TypeError, RuntimeError) as error:
            raise ArtifactError(f"model {artifact.model_version} is not of this release: {error}") from error
        return cls(model)
