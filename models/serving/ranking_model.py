"""The fitted ranking model: saving, loading, and the batch call of the ranking worker."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import orjson
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models.evidence.ease import Ease
from models.evidence.item_knowledge import BEHAVIOUR as BEHAVIOUR_ALONE
from models.evidence.item_knowledge import ItemKnowledge, Parts
from models.evidence.later import Described
from models.evidence.reference import Reference
from models.scorers.backbone import Backbone, pad
from models.scorers.fusion import Evidence, FusedScorer
from models.serving.later import LaterRows, Sides
from models.serving.requests import Gather, RankBatch, RankResult, known_items, stored_evidence
from schemas.artifacts import Artifact
from schemas.errors import ArtifactError
from schemas.settings import FitSettings

REFERENCE, FUSION, TEXT, KNOWLEDGE, INTEREST = (
    "reference.safetensors", "fusion.safetensors", "text.safetensors", "knowledge.safetensors", "interest.safetensors")
AFFINITY, BEHAVIOUR = "affinity.safetensors", "behaviour.safetensors"
EVERYONE = "everyone"  # in the configuration: the fused scores are for users without vectors, too
ATTENTION = "start-attention"  # name of `KnowledgeAttention` in the table of systems
CONFIG, ITEMS, TEXTS = "config.json", "items.json", "texts.json"


class RankingModel:
    """Reference and fused scorer of one model version.

    Attributes:
        behaviour: the reference; `reference` is its transformer.
        fused, affinity: the fused scorer, and the closed form that it adds.
        everyone: whether users without vectors are served the fused scores, too: item knowledge needs no vectors.
    """

    def __init__(
        self, reference: Reference | Backbone, fused: FusedScorer, config: dict[str, Any], affinity: Ease | None = None,
    ) -> None:
        """Combine trained parts; `save` writes `config` with them. Without `affinity` fused scores have no evidence."""
        self.behaviour = reference if isinstance(reference, Reference) else Reference.plain(reference)
        self.reference, self.fused, self.config = self.behaviour.backbone.eval(), fused.eval(), config
        self.affinity = affinity or Ease.none(self.reference.n_items)
        self.everyone = bool(config.get(EVERYONE, False))
        with torch.no_grad():
            self._side, self._reference_side = fused.item_side(), self.reference.item_side()  # constant once trained
        self._later: LaterRows | None = None

    @property
    def n_items(self) -> int:
        """Size of the catalogue."""
        return len(self._reference_side[1])

    def grow(self, size: int, known: Callable[[], ItemKnowledge]) -> None:
        """Make the catalogue `size` items. Of those at its end nothing is known until `put`.

        Args:
            known: returns what is known of the fit's items; called at most once.
        """
        if size > self.n_items:
            if self._later is None:
                self._later = LaterRows(
                    self.behaviour, self.fused, self._side, self._reference_side, self.affinity, known())
            self._take(self._later.grow(size))

    def put(self, rows: Sequence[int], new: Described, similar: Sequence[Mapping[int, float]]) -> None:
        """Take what is known of items that came after the fit; see `models.serving.later`."""
        if self._later is not None and rows:
            self._take(self._later.put(rows, new, similar))

    @property
    def encodes(self) -> bool:
        """Whether an item that comes after the fit needs the encoding of its text."""
        return self._later is not None and self._later.encodes

    def _take(self, found: Sides) -> None:
        self._reference_side, self._side, self.affinity = found.reference, found.fused, found.affinity
        self.behaviour = replace(self.behaviour, affinity=found.behaviour)

    @property
    def max_len(self) -> int:
        """Maximum number of items read from a history, the newest ones."""
        return self.reference.max_len

    @property
    def dim(self) -> int:
        """Width of the knowledge vectors."""
        return self.reference.dim

    @torch.inference_mode()
    def rank(self, batch: RankBatch) -> RankResult:
        """Score a batch of requests with and without knowledge."""
        histories, positions = known_items(batch.histories, self.max_len)
        tokens, lengths = pad(histories, self.max_len)
        places, at = self._places(batch, positions, lengths)
        hidden = self.reference(tokens, self._reference_side, at)
        have = [row for row, vectors in enumerate(batch.knowledge) if vectors is not None]
        others = [row for row, vectors in enumerate(batch.knowledge) if vectors is None] if self.everyone else []
        fused = torch.zeros_like(hidden)
        if have:
            stacked = torch.stack([torch.as_tensor(known.vectors).float() for known in batch.knowledge if known])
            fused[have] = self.fused.fuse(self.fused(tokens[have], self._side, at[have]), stacked)
        if others:
            fused[others] = self.fused(tokens[others], self._side, at[others])
        excluded = batch.masked()
        by_transformer = self.reference.scores(hidden[:, 0], self._reference_side)
        by_behaviour = self.behaviour.weigh(by_transformer, _read(tokens, at[:, 0]))
        ref_logp = _given(by_behaviour, excluded, batch.withheld)
        current = batch.current_evidence and self.affinity.weights.shape[1] > 0
        gather = self._current_evidence if current else stored_evidence(batch)
        fused_logp = ref_logp
        for part, gathering in ((have, gather), (others, self._current_evidence)):
            if part:
                rows = torch.tensor(part)
                every = len(part) == len(histories)  # no copies then: 400 kB a user with 100,000 items
                scores = self.fused.weigh(
                    self.fused.scores(fused[rows, 0], self._side), by_transformer if every else by_transformer[rows],
                    *gathering(tokens[rows], at[rows, 0], rows, torch.zeros_like(rows)))
                if every:
                    fused_logp = _given(scores, excluded, batch.withheld)
                else:
                    fused_logp = fused_logp.clone() if fused_logp is ref_logp else fused_logp
                    fused_logp[rows] = _given(scores, _of_rows(excluded, rows, len(histories)), batch.withheld)
        return RankResult(ref_logp, fused_logp, self._margins(batch, places, hidden, fused, tokens, at, gather))

    def _current_evidence(self, tokens: Tensor, slots: Tensor, *_: Tensor) -> tuple[Evidence, Tensor]:
        """Return the evidence from the first `slots` (m,) tokens of histories (m, T), and its age, which is 0."""
        return self.affinity.evidence(_read(tokens, slots)), torch.zeros_like(slots)

    def _places(
        self, batch: RankBatch, positions: list[dict[int, int]], lengths: Tensor,
    ) -> tuple[list[tuple[int, int, int, int]], Tensor]:
        """Return the events to judge as (row, index in its list, column of slots, item), and the needed slots (B, q).

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
        self, batch: RankBatch, places: list[tuple[int, int, int, int]], hidden: Tensor, fused: Tensor, tokens: Tensor,
        at: Tensor, gather: Gather,
    ) -> list[list[float | None]]:
        out: list[list[float | None]] = [[None] * len(judged) for judged in batch.judged]
        for begin in range(0, len(places), 1024):  # 1,024 × 12,000 float32 scores are 50 MB
            part = places[begin : begin + 1024]
            rows, _, columns, items = torch.tensor(part).unbind(1)
            each = torch.arange(len(part))
            by_transformer = self.reference.scores(hidden[rows, columns], self._reference_side)
            by_behaviour = self.behaviour.weigh(by_transformer, _read(tokens[rows], at[rows, columns]))
            after = torch.tensor([
                len(batch.histories[row]) - batch.judged[row][index][0] for row, index, _, _ in part])
            with_knowledge = self.fused.weigh(
                self.fused.scores(fused[rows, columns], self._side), by_transformer,
                *gather(tokens[rows], at[rows, columns], rows, after))
            margin = ((with_knowledge[each, items] - with_knowledge.logsumexp(-1))
                      - (by_behaviour[each, items] - by_behaviour.logsumexp(-1)))
            for (row, index, _, _), value in zip(part, margin.tolist(), strict=True):
                out[row][index] = value
        return out

    @torch.no_grad()
    def user_hidden(self, histories: Sequence[Sequence[int]]) -> Tensor:
        """Return the reference's hidden state (B, d) after each history of item rows."""
        known, _ = known_items(histories, self.max_len)
        tokens, lengths = pad(known, self.max_len)
        return self.reference(tokens, self._reference_side)[torch.arange(len(known)), lengths]

    def save(
        self, folder: Path, items: Sequence[str], texts: Sequence[str], knowledge: nn.Module | None = None,
    ) -> None:
        """Write the model's files (without the artifact's card and calibration) into `folder`.

        Args:
            items, texts: ids and catalogue texts of the items, in row order.
            knowledge: the `KnowledgeModel` trained with this model.
        """
        save_file(_state(self.reference), folder / REFERENCE)
        save_file(_state(self.fused), folder / FUSION)
        save_file({"text": self.fused.text.half().contiguous()}, folder / TEXT)
        save_file(_closed_form(self.affinity), folder / AFFINITY)
        save_file(_closed_form(self.behaviour.affinity) | {
            "gain": torch.tensor(self.behaviour.gain, dtype=torch.float64),
            "temperature": torch.tensor(self.behaviour.temperature, dtype=torch.float64)}, folder / BEHAVIOUR)
        if knowledge is not None:
            save_file(_state(knowledge), folder / KNOWLEDGE)
        write_catalogue(folder, items, texts, self._side[0], self.config)

    @classmethod
    def load(cls, artifact: Artifact) -> RankingModel:
        """Return the ranking model of an artifact.

        A version of an earlier release has no closed form in its reference, and ranks as it did.

        Raises:
            ArtifactError: the files are inconsistent.
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
            affinity = _loaded(load_file(artifact.path(AFFINITY)))
            behaviour = Reference.plain(reference)
            if BEHAVIOUR in artifact.card.files:
                kept = load_file(artifact.path(BEHAVIOUR))
                behaviour = Reference(reference, _loaded(kept), float(kept["gain"]), float(kept["temperature"]))
            elif config.get("fusion", ATTENTION) in ("", ATTENTION):
                fused.attention.earlier = True
            else:
                raise ArtifactError(f"model {artifact.model_version} is of an earlier release, whose "
                                    f"{config['fusion']} read knowledge in another way; run `freshet fit` again")
        except (KeyError, TypeError, RuntimeError) as error:
            raise ArtifactError(f"model {artifact.model_version} is not of this release: {error}") from error
        return cls(behaviour, fused, config, affinity)


def write_catalogue(
    folder: Path, items: Sequence[str], texts: Sequence[str], vectors: Tensor, config: dict[str, Any],
) -> None:
    """Write the files of every model version: items, their texts and vectors (n, w), and the configuration.

    User interests are averages of the vectors. The vectors are centred, because item vectors share a direction, and
    cosines between uncentred averages would all be near 1.
    """
    unit = nn.functional.normalize(vectors - vectors.mean(0), dim=1)
    save_file({"items": unit.detach().float().contiguous()}, folder / INTEREST)
    (folder / ITEMS).write_bytes(orjson.dumps(list(items)))
    (folder / TEXTS).write_bytes(orjson.dumps(list(texts)))
    (folder / CONFIG).write_bytes(orjson.dumps(config, option=orjson.OPT_INDENT_2))


def _fusion(name: str, fused: FusedScorer) -> Any:
    """Return an untrained fusion by name (`models.systems.registry.FUSIONS`); "" = no fusion, keep the attention."""
    if name in ("", ATTENTION):
        return fused.attention
    # Not above: the parts of the other systems load transformers and peft, half of a ranking worker's start and 120 MB.
    from models.systems.registry import FUSIONS

    block: Any = fused.blocks[0]
    return FUSIONS[name](FitSettings(dim=fused.dim, heads=block.heads))


def _given(scores: Tensor, excluded: tuple[Tensor, Tensor], withheld: Tensor | None) -> Tensor:
    """Return log-probabilities (m, n) of the items that may be recommended; −∞ for the others. Modifies `scores`."""
    scores[excluded] = -torch.inf
    if withheld is not None:
        scores.masked_fill_(withheld, -torch.inf)
    return scores.log_softmax(-1)


def _of_rows(pairs: tuple[Tensor, Tensor], rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return those of the pairs (row of `count`, item) whose row is one of `rows`, with its place there."""
    place = torch.full((count,), -1)
    place[rows] = torch.arange(len(rows))
    here = place[pairs[0]] >= 0
    return place[pairs[0]][here], pairs[1][here]


def _read(tokens: Tensor, slots: Tensor) -> Tensor:
    """Return the item rows (m, T) of the first `slots` (m,) tokens of histories (m, T); −1 = none."""
    inside = torch.arange(tokens.shape[1]) < slots[:, None]
    return torch.where(inside, tokens - 1, -1)


def _closed_form(affinity: Ease) -> dict[str, Tensor]:
    found = {"neighbours": affinity.neighbours.int(), "weights": affinity.weights.half(),
             "half_life": torch.tensor(affinity.half_life), "parts": torch.tensor(astuple(affinity.parts))}
    if affinity.diagonal is not None and affinity.users is not None:
        found |= {"diagonal": affinity.diagonal, "users": affinity.users}
    return found


def _loaded(kept: dict[str, Tensor]) -> Ease:
    # As stored: 768 bytes an item; as indices and single precision they would be 1,536. Earlier releases kept neither
    # parts nor what items that come later need.
    return Ease(kept["neighbours"], kept["weights"], float(kept["half_life"]),
                Parts(*kept["parts"].tolist()) if "parts" in kept else BEHAVIOUR_ALONE, kept.get("diagonal"),
                kept.get("users"))


def _state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}
