"""A made-up ranking model and requests, of any catalogue size: random weights, shapes and spreads of fitted ones."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from models.evidence.ease import NEIGHBOURS, Ease
from models.evidence.reference import Reference
from models.scorers.backbone import Backbone
from models.scorers.fusion import FusedScorer
from models.serving.ranking_model import EVERYONE, RankingModel
from schemas.messages import JudgedEvent, RankingRequest
from workers.store.cache import Lookup
from workers.store.point import KnowledgePoint

DIM, LAYERS, HEADS, HISTORY, VECTORS, TEXT = 64, 2, 2, 50, 4, 128
EPSILON = 0.1
SPREAD = 0.25  # of item vectors: logits then have a standard deviation of 2 nats, as Beauty's do
GAINS = 8.0  # of the closed form, whose entries are exponential with this mean
ENTRY = 0.02


def model(items: int, seed: int = 0) -> RankingModel:
    """Return a model that scores `items` items with a transformer and a closed form, twice."""
    torch.manual_seed(seed)
    shape = {"n_items": items, "dim": DIM, "layers": LAYERS, "heads": HEADS, "max_len": HISTORY, "dropout": 0.0}
    backbone = Backbone(**shape)
    torch.nn.init.normal_(backbone.items, std=SPREAD)
    torch.nn.init.normal_(backbone.bias)
    fused = FusedScorer(torch.randn(items, TEXT), None, **shape)
    fused.load_state_dict(backbone.state_dict(), strict=False)
    fused.evidence_gain.fill_(GAINS)
    fused.reference_share.fill_(0.5)
    torch.nn.init.normal_(fused.attention.out.weight, std=0.05)
    reference = Reference(backbone, _closed_form(items), GAINS)
    return RankingModel(reference, fused, {"backbone": shape, EVERYONE: True}, _closed_form(items))


def _closed_form(items: int) -> Ease:
    weights = torch.empty(items, NEIGHBOURS, dtype=torch.float16).exponential_(1 / ENTRY)
    return Ease(torch.randint(0, items, (items, NEIGHBOURS), dtype=torch.int32), weights)


def requests(items: int, users: int, seed: int = 0) -> list[RankingRequest]:
    """Return a request of each user: a full history and one event to judge, as after an event."""
    rng = np.random.default_rng(seed)
    out = []
    for user in range(users):
        history = [f"i{row}" for row in rng.integers(0, items, HISTORY)]
        out.append(RankingRequest(
            user_id=f"u{user}", reason="event", history=history, count=HISTORY + 10, knowledge_version=1,
            event_time=1e9, caused_at=1e9, requested_at=1e9, judged=[
                JudgedEvent(event_id=f"e{user}", item_id=history[-1], position=HISTORY - 1, count=HISTORY + 10)]))
    return out


class MadeUpReader:
    """A reader that knows every user, or nobody, in place of `CachedReader`: reading is not what is measured."""

    hits = misses = 0
    available = True

    def __init__(self, *, knowledge: bool, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self._vectors = rng.normal(0, 1, (64, VECTORS, DIM)).astype(np.float16)
        self._knowledge = knowledge

    def read(self, wanted: Mapping[str, int]) -> Lookup:
        """Return the users' knowledge."""
        points = {user: self._point(user) for user in wanted} if self._knowledge else {}
        return Lookup(points, frozenset(), {})

    def _point(self, user: str) -> KnowledgePoint:
        vectors = self._vectors[int(user[1:]) % len(self._vectors)]
        return KnowledgePoint(
            user, 1, "m1", vectors, np.ones(DIM, np.float32), "h", "drift", 1e9, 1e9, HISTORY, codes=(0,) * VECTORS)


def by_user(found: Mapping[str, list[str]], wanted: Mapping[str, list[str]]) -> float:
    """Return the mean share of each user's wanted items that were found (recall)."""
    return float(np.mean([len(set(found[user]) & set(items)) / max(1, len(items)) for user, items in wanted.items()]))
