"""A fitted ranking model as a whole: what is saved, how it is loaded, and the batch call the ranking worker makes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models.affinity import Affinity, Evidence
from models.backbone import Backbone, pad
from models.fusion import FusedScorer
from models.knowledge import KnowledgeModel
from models.llm import LanguageModel
from schemas.artifacts import Artifact
from schemas.errors import ArtifactError
from schemas.settings import FitSettings

REFERENCE, FUSION, TEXT, KNOWLEDGE, INTEREST = (
    "reference.safetensors", "fusion.safetensors", "text.safetensors", "knowledge.safetensors", "interest.safetensors")
AFFINITY = "affinity.safetensors"
ATTENTION = "start-attention"  # name of `KnowledgeAttention` in the table of systems
CONFIG, ITEMS, TEXTS = "config.json", "items.json", "texts.json"


_NO_ITEMS, _NO_WEIGHTS = np.zeros(0, np.int64), np.zeros(0, np.float32)


@dataclass(frozen=True, slots=True)
class UserKnowledge:
    """What is known of one user, and how old it is.

    Args:
        vectors: (K, d).
        items, weights: (M,) evidence, as item rows; see `models.affinity`.
        behind: events of the user since, at the end of the history it is used with.
    """

    vectors: np.ndarray | Tensor
    items: np.ndarray = field(default_factory=lambda: _NO_ITEMS)
    weights: np.ndarray = field(default_factory=lambda: _NO_WEIGHTS)
    behind: int = 0


@dataclass(frozen=True, slots=True)
class RankBatch:
    """Requests of B users, as item rows; −1 is an item the model does not know.

    Args:
        histories: B lists, oldest first.
        seen: B lists of further items not to recommend.
        knowledge: B users' knowledge, None where a user has none.
        judged: B lists of (position, item row): history[:position] came before the item.
        top: items of each user that will be shown, for models that do not score all.
    """

    histories: Sequence[Sequence[int]]
    seen: Sequence[Sequence[int]]
    knowledge: Sequence[UserKnowledge | None]
    judged: Sequence[Sequence[tuple[int, int]]] = field(default_factory=list)
    top: int = 10


@dataclass(frozen=True, slots=True)
class RankResult:
    """What to rank by, and what knowledge was worth.

    Args:
        ref_logp: (B, n) float32 log-probabilities of the next item by behaviour alone; −inf = seen, or, of a generative
            model, not among the beams.
        fused_logp: (B, n) the same with knowledge; equal to `ref_logp` where a user has none.
        margins: B lists, per judged event log p_fused − log p_ref over the whole catalogue (nats), None where the item
            is unknown, the position is no longer in the history read, or the user has no knowledge.
    """

    ref_logp: Tensor
    fused_logp: Tensor
    margins: list[list[float | None]]


class RankingModel:
    """Reference and fused scorer of one model version."""

    def __init__(
        self, reference: Backbone, fused: FusedScorer, config: dict[str, Any], affinity: Affinity | None = None,
    ) -> None:
        """Join trained parts; `config` is what `save` writes beside them, without `affinity` there is no evidence."""
        self.reference, self.fused, self.config = reference.eval(), fused.eval(), config
        none = torch.zeros(reference.n_items, 0)
        self.affinity = affinity or Affinity(none.long(), none)
        with torch.no_grad():
            self._side = fused.item_side()  # constant once trained

    @property
    def n_items(self) -> int:
        """Size of the catalogue."""
        return self.reference.n_items

    @property
    def max_len(self) -> int:
        """Items of a history that are read, the newest ones."""
        return self.reference.max_len

    @property
    def dim(self) -> int:
        """Width of the knowledge vectors it reads."""
        return self.reference.dim

    @torch.inference_mode()
    def rank(self, batch: RankBatch) -> RankResult:
        """Score a batch of requests both ways."""
        histories, positions = known_items(batch.histories, self.max_len)
        tokens, lengths = pad(histories, self.max_len)
        places, at = self._places(batch, positions, lengths)
        hidden = self.reference(tokens, at=at)
        have = [row for row, vectors in enumerate(batch.knowledge) if vectors is not None]
        fused = torch.zeros_like(hidden)
        if have:
            stacked = torch.stack([torch.as_tensor(known.vectors).float() for known in batch.knowledge if known])
            fused[have] = self.fused.fuse(self.fused(tokens[have], self._side, at[have]), stacked)
        seen = torch.zeros(len(histories), self.n_items, dtype=torch.bool)
        seen[seen_items(batch.histories, batch.seen)] = True
        by_behaviour = self.reference.scores(hidden[:, 0])
        ref_logp = by_behaviour.masked_fill(seen, -torch.inf).log_softmax(-1)
        fused_logp = ref_logp.clone()
        evidence, behind = _evidence(batch.knowledge)
        if have:
            scores = self.fused.weigh(
                self.fused.scores(fused[have, 0], self._side), by_behaviour[have], evidence[torch.tensor(have)],
                behind[have])
            fused_logp[have] = scores.masked_fill_(seen[have], -torch.inf).log_softmax(-1)
        return RankResult(ref_logp, fused_logp, self._margins(batch, places, hidden, fused, evidence, behind))

    def _places(
        self, batch: RankBatch, positions: list[dict[int, int]], lengths: Tensor,
    ) -> tuple[list[tuple[int, int, int, int]], Tensor]:
        """Return what to judge, as (row, index in its list, column of slots, item), and the slots needed (B, q).

        Column 0 is the slot after the whole history.
        """
        places = []
        columns: list[list[int]] = [[length] for length in lengths.tolist()]
        for row, judged in enumerate(batch.judged):
            for index, (position, item) in enumerate(judged):
                slot = positions[row].get(position)
                if batch.knowledge[row] is not None and slot is not None and 0 <= item < self.n_items:
                    places.append((row, index, len(columns[row]), item))
                    columns[row].append(slot)
        width = max(map(len, columns), default=1)
        at = torch.tensor([slots + slots[:1] * (width - len(slots)) for slots in columns], dtype=torch.int64)
        return places, at.reshape(len(columns), width)

    def _margins(
        self, batch: RankBatch, places: list[tuple[int, int, int, int]], hidden: Tensor, fused: Tensor,
        evidence: Evidence, behind: Tensor,
    ) -> list[list[float | None]]:
        out: list[list[float | None]] = [[None] * len(judged) for judged in batch.judged]
        for begin in range(0, len(places), 1024):  # 1,024 × 12,000 float32 scores are 50 MB
            part = places[begin : begin + 1024]
            rows, _, columns, items = torch.tensor(part).unbind(1)
            each = torch.arange(len(part))
            by_behaviour = self.reference.scores(hidden[rows, columns])
            after = torch.tensor([
                len(batch.histories[row]) - batch.judged[row][index][0] for row, index, _, _ in part])
            with_knowledge = self.fused.weigh(
                self.fused.scores(fused[rows, columns], self._side), by_behaviour, evidence[rows],
                (behind[rows] - after).clamp(min=0))
            margin = (with_knowledge.log_softmax(-1) - by_behaviour.log_softmax(-1))[each, items]
            for (row, index, _, _), value in zip(part, margin.tolist(), strict=True):
                out[row][index] = value
        return out

    @torch.no_grad()
    def user_hidden(self, histories: Sequence[Sequence[int]]) -> Tensor:
        """Return what behaviour says of users, (B, d): the hidden state after their whole history of item rows."""
        known, _ = known_items(histories, self.max_len)
        tokens, lengths = pad(known, self.max_len)
        return self.reference(tokens)[torch.arange(len(known)), lengths]

    def save(
        self, folder: Path, items: Sequence[str], texts: Sequence[str], knowledge: nn.Module | None = None,
    ) -> None:
        """Write every file of the model (not the artifact's card and calibration) into `folder`.

        Args:
            items, texts: ids and catalogue texts of the items in row order.
            knowledge: the `KnowledgeModel` trained with it.
        """
        save_file(_state(self.reference), folder / REFERENCE)
        save_file(_state(self.fused), folder / FUSION)
        save_file({"text": self.fused.text.half().contiguous()}, folder / TEXT)
        save_file({"neighbours": self.affinity.neighbours.int(), "weights": self.affinity.weights.half()},
                  folder / AFFINITY)
        if knowledge is not None:
            save_file(_state(knowledge), folder / KNOWLEDGE)
        write_catalogue(folder, items, texts, self._side[0], self.config)

    @classmethod
    def load(cls, artifact: Artifact) -> RankingModel:
        """Return the ranking model of an artifact.

        Raises:
            ArtifactError: its files do not fit together.
        """
        config = orjson.loads(artifact.path(CONFIG).read_bytes())
        try:
            reference = Backbone(**config["backbone"])
            reference.load_state_dict(load_file(artifact.path(REFERENCE)))
            text = load_file(artifact.path(TEXT))["text"].float()
            weights = load_file(artifact.path(FUSION))
            fused = FusedScorer(text, weights["fresh"], **config["backbone"])
            fused.attention = _fusion(config.get("fusion", ATTENTION), fused)
            fused.load_state_dict(weights)
            kept = load_file(artifact.path(AFFINITY))
            affinity = Affinity(kept["neighbours"].long(), kept["weights"].float())
        except (KeyError, TypeError, RuntimeError) as error:
            raise ArtifactError(f"model {artifact.model_version} is not of this release: {error}") from error
        return cls(reference, fused, config, affinity)


def write_catalogue(
    folder: Path, items: Sequence[str], texts: Sequence[str], vectors: Tensor, config: dict[str, Any],
) -> None:
    """Write what every model version has: its items, their texts and vectors (n, w), and its configuration.

    The vectors are what users' interests are averages of. They are centred: item vectors share a direction, and cosines
    between averages of them would all be near 1.
    """
    unit = nn.functional.normalize(vectors - vectors.mean(0), dim=1)
    save_file({"items": unit.detach().float().contiguous()}, folder / INTEREST)
    (folder / ITEMS).write_bytes(orjson.dumps(list(items)))
    (folder / TEXTS).write_bytes(orjson.dumps(list(texts)))
    (folder / CONFIG).write_bytes(orjson.dumps(config, option=orjson.OPT_INDENT_2))


def _fusion(name: str, fused: FusedScorer) -> Any:
    """Return an untrained fusion by name (`models.parts.FUSIONS`); "" = none, and what is there changes nothing."""
    if name in ("", ATTENTION):
        return fused.attention
    from models.parts import FUSIONS  # its objectives know alignment, which knows this module

    block: Any = fused.blocks[0]
    return FUSIONS[name](FitSettings(dim=fused.dim, heads=block.heads))


def knowledge_config(artifact: Artifact, llm: LanguageModel) -> dict[str, Any]:
    """Return what an artifact's configuration says of its knowledge, if it was trained with this language model.

    Raises:
        ArtifactError: it was trained with a language model of another name or width.
    """
    config = dict(orjson.loads(artifact.path(CONFIG).read_bytes()).get("knowledge", {}))
    if config.get("hidden") != llm.hidden_size or config.get("llm") != llm.model_id:
        raise ArtifactError(
            f"model {artifact.model_version} was fitted with the language model {config.get('llm')!r}, the settings "
            f"name {llm.model_id!r}; set FRESHET_LLM_NAME to the former or run `freshet fit` again")
    return config


def load_knowledge(artifact: Artifact, llm: LanguageModel) -> KnowledgeModel:
    """Return the model of soft instructions of an artifact, for the language model it was trained with.

    Raises:
        ArtifactError: it was trained with a language model of another name or width.
    """
    config = knowledge_config(artifact, llm)
    model = KnowledgeModel(config["dim"], config["hidden"], config["instructions"], config["codes"])
    model.load_state_dict(load_file(artifact.path(KNOWLEDGE)))
    return model.eval()


def _evidence(knowledge: Sequence[UserKnowledge | None]) -> tuple[Evidence, Tensor]:
    """Return the evidence of users (B, M) and how many events old it is (B,); none where there is no knowledge."""
    width = max((len(known.items) for known in knowledge if known), default=0)
    items = np.full((len(knowledge), width), -1, np.int64)
    weights = np.zeros((len(knowledge), width), np.float32)
    behind = np.zeros(len(knowledge), np.int64)
    for row, known in enumerate(knowledge):
        if known:
            items[row, :len(known.items)], weights[row, :len(known.weights)] = known.items, known.weights
            behind[row] = known.behind
    return Evidence(torch.from_numpy(items), torch.from_numpy(weights)), torch.from_numpy(behind)


def _state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}


def known_items(histories: Sequence[Sequence[int]], max_len: int) -> tuple[list[list[int]], list[dict[int, int]]]:
    """Return histories without unknown items, newest `max_len`, and where each position of the original now is."""
    out, positions = [], []
    for history in histories:
        known: list[int] = []
        before = []  # number of known items before each position
        for item in history:
            before.append(len(known))
            if item >= 0:
                known.append(item)
        before.append(len(known))
        cut = max(0, len(known) - max_len)
        positions.append({place: count - cut for place, count in enumerate(before) if count >= cut})
        out.append(known[cut:])
    return out, positions


def seen_items(histories: Sequence[Sequence[int]], seen: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Return (row of the batch, item row) of what is not to be recommended, each pair once."""
    lists = [{item for item in (*a, *b) if item >= 0} for a, b in zip(histories, seen, strict=True)]
    rows = np.repeat(np.arange(len(lists)), [len(items) for items in lists])
    return torch.from_numpy(rows), torch.tensor([item for items in lists for item in items], dtype=torch.int64)
