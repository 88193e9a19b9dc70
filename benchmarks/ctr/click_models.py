"""KAR's task, predicting whether a user likes an item: DIN and DCNv2, with and without written knowledge.

DIN (arXiv 1706.06978) attends to the history with the target item; DCNv2 (arXiv 2008.13535) combines cross layers with
an MLP. As in KAR, knowledge of the target item and of the user goes through the towers of `models.systems.kar.written`
and is appended to the input. Test users are not in the training set, so there is no user id: only the user's history is
known.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name the field uses

from models.data.dataset import FloatArray, IntArray
from models.systems.kar.towers import ITEM, SHARED, SPECIFIC, USER, Towers

EMBED = 32
KNOWLEDGE = 32
LEARNING_RATE = 1e-3
BATCH = 512
WIDTH = 32  # of an expert; 128 takes twice the time and is more than 943 users and 1,682 items need
PATIENCE = 3
LIKED = 3.0  # a rating above this is a positive label
HISTORY = 10  # number of newest earlier events in a sample; 5 in KAR's scripts
FIRST = 30  # maximum number of a user's first events that the language model reads; they are not samples


@dataclass(frozen=True, slots=True)
class Samples:
    """m samples.

    Args:
        user, item: (m,) rows.
        history: (m, H) item rows of the user's newest earlier events, −1 = none.
        liked: (m, H) 1.0 if the user liked that item.
        label: (m,) 1.0 = liked.
    """

    user: IntArray
    item: IntArray
    history: IntArray
    liked: FloatArray
    label: FloatArray

    def __len__(self) -> int:
        return len(self.user)

    def of_users(self, users: IntArray) -> Samples:
        """Return the samples of some users."""
        keep = np.isin(self.user, users)
        return Samples(self.user[keep], self.item[keep], self.history[keep], self.liked[keep], self.label[keep])


def written_events(lengths: IntArray) -> IntArray:
    """Return how many of each user's first events the language model reads: half of them, at most 30 (KAR)."""
    return np.minimum((lengths + 1) // 2, FIRST)


def samples(item: IntArray, rating: FloatArray, offsets: IntArray) -> Samples:
    """Return a sample for every event that the language model does not read.

    Args:
        item, rating: (n,) items and ratings of users' events, oldest first, one user after the other.
        offsets: (users + 1,) user u has rows offsets[u]:offsets[u + 1].
    """
    lengths = np.diff(offsets)
    user = np.repeat(np.arange(len(lengths)), lengths)
    low = offsets[user]
    rows = np.flatnonzero(np.arange(len(item)) - low >= written_events(lengths)[user])
    places = rows[:, None] - np.arange(HISTORY, 0, -1)
    inside = places >= low[rows][:, None]
    at = np.maximum(places, 0)
    return Samples(
        user[rows], item[rows], np.where(inside, item[at], -1), (inside & (rating[at] > LIKED)).astype(float),
        (rating[rows] > LIKED).astype(float))


class Ctr(nn.Module):
    """A click model.

    Args:
        n_items: size of the catalogue.
        kind: "din" or "dcnv2".
        users, items: (users, w), (n_items, w) whitened states of texts about them; None = without knowledge.
        wider: factor for embeddings and layers, to match the number of weights of a model with knowledge.
    """

    users: Tensor | None
    texts: Tensor | None

    def __init__(
        self, n_items: int, kind: str, users: Tensor | None = None, items: Tensor | None = None, wider: int = 1,
    ) -> None:
        super().__init__()
        self.kind = kind
        embed, inner, outer = EMBED * wider, 200 * wider, 80 * wider
        self.items = nn.Embedding(n_items + 1, embed, padding_idx=0)
        self.liked = nn.Embedding(2, embed)
        nn.init.normal_(self.items.weight, std=0.05)
        nn.init.normal_(self.liked.weight, std=0.05)
        self.register_buffer("users", users, persistent=False)
        self.register_buffer("texts", items, persistent=False)
        width = 2 * embed
        if users is not None:
            self.towers = Towers(2, users.shape[1], KNOWLEDGE, SHARED, SPECIFIC, WIDTH)
            width += 2 * KNOWLEDGE
        if kind == "din":
            self.unit = nn.Sequential(nn.Linear(4 * embed, 32), nn.PReLU(), nn.Linear(32, 16), nn.PReLU(),
                                      nn.Linear(16, 1))
        else:
            self.crosses = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.mlp = nn.Sequential(nn.Linear(width, inner), nn.PReLU(), nn.Linear(inner, outer), nn.PReLU())
        self.out = nn.Linear(outer + (0 if kind == "din" else width), 1)

    def forward(self, user: Tensor, item: Tensor, history: Tensor, liked: Tensor) -> Tensor:
        """Return logits (m,) for users (m,), items (m,), histories (m, H) and whether each was liked (m, H)."""
        target, there = self.items(item + 1), history >= 0
        past = (self.items(history + 1) + self.liked(liked.long())) * there[..., None]
        if self.kind == "din":
            query = target[:, None].expand_as(past)
            weight = self.unit(torch.cat([query, past, query - past, query * past], -1)) * there[..., None]
            interest = (weight * past).sum(1)
        else:
            interest = past.sum(1) / there.sum(1, keepdim=True).clamp(min=1)
        parts = [target, interest]
        if self.users is not None and self.texts is not None:
            parts += [self.towers.tower(self.users[user], USER), self.towers.tower(self.texts[item], ITEM)]
        x = torch.cat(parts, -1)
        deep = self.mlp(x)
        if self.kind == "din":
            return self.out(deep).squeeze(-1)
        crossed = x
        for cross in self.crosses:
            crossed = x * cross(crossed) + crossed
        return self.out(torch.cat([crossed, deep], -1)).squeeze(-1)


class Auc:
    """The area under the ROC curve of scores (m,) and labels (m,) for any sample weights; ties count half."""

    def __init__(self, score: FloatArray, label: FloatArray) -> None:
        _, self._level = np.unique(score, return_inverse=True)
        self._positive = label > 0.5

    def __call__(self, weight: FloatArray) -> float:
        """Return the area for weights (m,); 0.5 if one class has no weight."""
        up = np.bincount(self._level, weight * self._positive)
        down = np.bincount(self._level, weight * ~self._positive)
        pairs = up.sum() * down.sum()
        return float((up * (np.cumsum(down) - down / 2)).sum() / pairs) if pairs > 0 else 0.5


def auc(score: FloatArray, label: FloatArray) -> float:
    """Return the area under the ROC curve; ties count half, 0.5 if one class is missing."""
    return Auc(score, label)(np.ones(len(score)))


def fit_ctr(
    model: Ctr, train: Samples, validation: Samples, epochs: int = 20, seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, float]:
    """Train in place; keep the epoch with the best LogLoss on `validation`."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    best, kept = {"logloss": float("inf"), "epoch": 0.0}, copy.deepcopy(model.state_dict())
    for epoch in range(epochs):
        model.train()
        order = rng.permutation(len(train))
        for at in range(0, len(order), BATCH):
            part = order[at : at + BATCH]
            loss = F.binary_cross_entropy_with_logits(_logits(model, train, part), _tensor(train.label[part]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        now = judge_ctr(model, validation)
        if progress is not None:
            progress(epoch + 1, epochs)
        if now["logloss"] < best["logloss"]:
            best, kept = now | {"epoch": epoch + 1.0}, copy.deepcopy(model.state_dict())
        elif epoch + 1 - best["epoch"] >= PATIENCE:
            break
    model.load_state_dict(kept)
    return best


def judge_ctr(model: Ctr, part: Samples) -> dict[str, float]:
    """Return AUC and LogLoss (nats) of samples."""
    score = scores_ctr(model, part)
    return {"auc": auc(score, part.label), "logloss": float(logloss(score, part.label).mean())}


@torch.no_grad()
def scores_ctr(model: Ctr, part: Samples) -> FloatArray:
    """Return the logits (m,) of samples."""
    model.eval()
    rows = np.arange(len(part))
    logits = [_logits(model, part, rows[at : at + 4096]) for at in range(0, len(rows), 4096)]
    return torch.cat(logits).double().numpy()


def logloss(score: FloatArray, label: FloatArray) -> FloatArray:
    """Return the loss (m,) of logits, in nats."""
    return np.logaddexp(0, score) - score * label


def _logits(model: Ctr, part: Samples, rows: IntArray) -> Tensor:
    return model(*(torch.from_numpy(column[rows]) for column in (part.user, part.item, part.history, part.liked)))


def _tensor(values: FloatArray) -> Tensor:
    return torch.from_numpy(values).float()
