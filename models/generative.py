"""A generative recommender over semantic IDs (TIGER-style): a transformer reads items, a small decoder spells the next.

An item is read as the sum of its digits' vectors, so a history of T items is T tokens rather than T·L. The decoder
starts from the state after the history ([BOS]) and sees the digits so far; its softmax is over the digits that the trie
allows, so the probabilities of all items sum to 1 and a beam never leaves the catalogue. Items no event has shown are
reached through digits they share with others.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name the field uses

from models.backbone import Block
from models.dataset import IntArray
from models.distributed import Place, moved, place
from models.evaluation import ndcg, seen_pairs
from models.protocols import Ranks
from models.semantic_ids import SemanticIds, Trie
from models.sequences import Sequences, Windows, batches, tensors, windows
from models.training import FEWEST, FEWEST_SLOTS, LEARNING_RATE, PATIENCE, SCALES, SLOTS, STEPS, STRIDE, Fold, descend
from schemas.settings import FitSettings

Progress = Callable[[int, int, dict[str, float]], None]

WEIGHT_DECAY = 0.01
BEAMS = 64
JUDGED, JUDGING = 1000, 16  # held-out events that choose the epoch, and beams for that: 1.5 s, like 64 within .005
EPOCHS = 2  # times the dense scorer's: on Beauty, leave-one-out, it goes on learning beyond 40
EXTENSION = 3  # epochs over the held-out events too, as `models.training.extend`
EVENTS = 256  # ranked at a time


class Generative(nn.Module):
    """Encoder of histories, decoder of digits.

    Args:
        ids: of the catalogue.
        dim, layers, heads, max_len, dropout: of the encoder; the decoder has one layer.

    Attributes:
        scale: factor of the logits of all digits; 1 until `temper` sets it.
    """

    codes: Tensor
    scale: Tensor

    def __init__(self, ids: SemanticIds, dim: int, layers: int, heads: int, max_len: int, dropout: float) -> None:
        super().__init__()
        self.ids, self.trie = ids, Trie(ids)
        self.n_items, self.dim, self.max_len, self.dropout = len(ids.codes), dim, max_len, dropout
        self.register_buffer("codes", ids.codes)
        self.register_buffer("scale", torch.ones(()))
        self.digits = nn.ModuleList(nn.Embedding(size, dim) for size in ids.sizes)
        self.start = nn.Parameter(torch.zeros(dim))
        self.positions = nn.Embedding(max_len + 1, dim)
        self.places = nn.Embedding(len(ids.sizes), dim)
        self.encoder = nn.ModuleList(Block(dim, heads, dropout) for _ in range(layers))
        self.decoder = Block(dim, heads, dropout)
        self.norm, self.out_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.heads = nn.ModuleList(nn.Linear(dim, size) for size in ids.sizes)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, history: Tensor) -> Tensor:
        """Return hidden states (B, T + 1, d) for tokens (B, T), item row + 1, padded on the right with 0."""
        vectors = torch.stack([table(self.codes[:, level]) for level, table in enumerate(self.digits)]).sum(0)
        x = F.embedding(history, F.pad(vectors, (0, 0, 1, 0))) * self.dim**0.5
        x = torch.cat([self.start.expand(len(history), 1, -1), x], 1)
        x = F.dropout(x + self.positions.weight[: x.shape[1]], self.dropout, self.training)
        for block in self.encoder:
            x = block(x)
        return self.norm(x)

    def spell(self, hidden: Tensor, word: Tensor) -> Tensor:
        """Return states (m, l + 1, d) of the decoder after [BOS] (m, d) and the digits so far (m, l)."""
        parts = [hidden[:, None]] + [
            self.digits[level](word[:, level])[:, None] * self.dim**0.5 for level in range(word.shape[1])]
        x = torch.cat(parts, 1) + self.places.weight[: word.shape[1] + 1]
        return self.out_norm(self.decoder(x))

    def allowed(self, state: Tensor, level: int, node: Tensor) -> Tensor:
        """Return log-probabilities (m, sizes[level]) of digits for states (m, d) at trie nodes (m,)."""
        shut = self.trie.children[level].to(node.device)[node] < 0
        return (self.scale * self.heads[level](state)).float().masked_fill(shut, -torch.inf).log_softmax(-1)

    def log_probability(self, hidden: Tensor, item: Tensor) -> Tensor:
        """Return log p (m,) of item rows (m,) for hidden states (m, d), nats."""
        word, nodes = self.codes[item], self.trie.paths.to(item.device)[item]
        states = self.spell(hidden, word[:, :-1])
        parts = [
            self.allowed(states[:, level], level, nodes[:, level]).gather(1, word[:, level : level + 1])
            for level in range(word.shape[1])]
        return torch.cat(parts, 1).sum(1)

    @torch.no_grad()
    def scores(self, hidden: Tensor) -> Tensor:
        """Return log p (m, n) of every item for hidden states (m, d): for small catalogues, a pass per item."""
        every = torch.arange(self.n_items, device=hidden.device)
        return torch.stack([self.log_probability(one.expand(self.n_items, -1), every) for one in hidden])

    @torch.no_grad()
    def beam(self, hidden: Tensor, seen: tuple[Tensor, Tensor], width: int = BEAMS) -> tuple[Tensor, Tensor]:
        """Return the best items (m, ≤ width) and their log p by beam search, −1 and −∞ where there are fewer.

        Args:
            hidden: (m, d).
            seen: (row, item) pairs not to return. A prefix below which a user has had everything is not followed.
        """
        m, device = len(hidden), hidden.device
        row, item = seen[0].to(device), seen[1].to(device)
        paths = self.trie.paths.to(device)
        score = torch.zeros(m, 1, device=device)
        node = torch.zeros(m, 1, dtype=torch.int64, device=device)
        word = torch.zeros(m, 1, 0, dtype=torch.int64, device=device)
        last = len(self.ids.sizes) - 1
        for level, size in enumerate(self.ids.sizes):
            k = node.shape[1]
            state = self.spell(hidden.repeat_interleave(k, 0), word.flatten(0, 1))[:, -1]
            logp = self.allowed(state, level, node.flatten()).view(m, k, size) + score[..., None]
            after = self.trie.children[level].to(device)[node]  # m, k, size
            if level == last:
                had = torch.zeros(m, self.n_items, dtype=torch.bool, device=device)
                had[row, item] = True
                empty = had.gather(1, after.clamp(min=0).flatten(1)).view_as(after)
            else:
                leaves = self.trie.leaves[level + 1].to(device)
                left = leaves.repeat(m, 1).float()
                left.index_put_((row, paths[item, level + 1]), -torch.ones(len(row), device=device), accumulate=True)
                empty = left.gather(1, after.clamp(min=0).flatten(1)).view_as(after) <= 0
            logp = logp.masked_fill(empty | (after < 0), -torch.inf)
            score, best = logp.flatten(1).topk(min(width, k * size), 1)
            node = after.flatten(1).gather(1, best)
            parent = (best // size)[..., None].expand(-1, -1, word.shape[2])
            word = torch.cat([word.gather(1, parent), (best % size)[..., None]], 2)
            # Dead beams stay in the batch with score −∞; they stand at a node that exists.
            node = torch.where(torch.isinf(score), -1 if level == last else 0, node)
        return node, score


def train_generative(
    fold: Fold, ids: SemanticIds, settings: FitSettings, max_len: int, progress: Progress | None = None,
) -> tuple[Generative, dict[str, float]]:
    """Return the model with the best NDCG@10 on held-out events, as the dense scorer's is chosen, and its metrics.

    Likelihood turns earlier: in stream time on Beauty at epoch 4, where NDCG@10 is .016; by epoch 24 it is .022.

    The same seed, data and number of threads give the same weights.
    """
    began = time.monotonic()
    torch.manual_seed(settings.seed)
    rng = np.random.default_rng(settings.seed)
    model = Generative(ids, settings.dim, settings.layers, settings.heads, max_len, settings.id_dropout)
    here = place(settings.device)
    if here.ranks > 1:
        torch.manual_seed(settings.seed + here.rank)  # weights are drawn already; dropout is each process's own
    model.to(here.device)
    averaged = copy.deepcopy(model)
    optimizer = _optimizer(model)
    train = fold.training()
    best, weights = {"ndcg_at_10": -1.0}, copy.deepcopy(averaged.state_dict())
    lowest, better, steps = float("inf"), 0, 0  # likelihood, the last epoch that was better in either
    epochs = EPOCHS * settings.epochs
    for epoch in range(epochs):
        loss, steps = _epoch(model, averaged, optimizer, train, rng, steps, here)
        judged = averaged if here.device.type == "cpu" else copy.deepcopy(averaged).cpu()
        now = here.agree(_validate(judged, fold) | {"loss": loss, "epoch": epoch + 1.0})
        if progress is not None:
            progress(epoch + 1, epochs, now)
        if now["ndcg_at_10"] > best["ndcg_at_10"]:
            best, weights, better = now, copy.deepcopy(averaged.state_dict()), epoch
        if now["nll"] < lowest:
            lowest, better = now["nll"], epoch
        if epoch - better >= PATIENCE and steps >= FEWEST:
            break
    averaged.load_state_dict(weights)
    averaged.cpu()
    best |= {"nll": temper(averaged, fold), "scale": float(averaged.scale)}
    about = {f"semantic_ids_{name}": value for name, value in ids.about.items()}
    return averaged.eval().requires_grad_(False), best | about | {"seconds": time.monotonic() - began}


def extend_generative(model: Generative, fold: Fold, settings: FitSettings, progress: Progress | None) -> Generative:
    """Return a copy that has gone on, over the held-out events too."""
    torch.manual_seed(settings.seed)
    rng = np.random.default_rng(settings.seed)
    here = place(settings.device)
    if here.ranks > 1:
        torch.manual_seed(settings.seed + here.rank)
    model = copy.deepcopy(model).to(here.device).requires_grad_(True)
    scale = float(model.scale)
    model.scale.fill_(1.0)  # trained as before
    averaged = copy.deepcopy(model)
    optimizer, steps = _optimizer(model), 0
    for epoch in range(EXTENSION):
        loss, steps = _epoch(model, averaged, optimizer, fold.sequences, rng, steps, here)
        if progress is not None:
            progress(epoch + 1, EXTENSION, {"loss": loss})
    averaged.scale.fill_(scale)
    return averaged.cpu().eval().requires_grad_(False)


@torch.no_grad()
def rank_generative(
    model: Generative, sequences: Sequences, begin: IntArray, progress: Callable[[int, int], None] | None = None,
    width: int = BEAMS, only: IntArray | None = None,
) -> Ranks:
    """Rank the item of every event from row `begin` on of each user among the beams; beyond them it is missed.

    Args:
        only: rows that are ranked, ascending; None = all.
    """
    model.eval()
    part = windows(sequences, model.max_len, 1, begin)
    if only is not None:
        part = part[np.flatnonzero(np.searchsorted(only, part.first) < np.searchsorted(only, part.stop))]
    rows, ranks, logp = [], [], []
    done, total = 0, int((part.stop - part.first).sum()) if only is None else len(only)
    for batch in batches(part, EVENTS * (model.max_len + 1)):
        tokens, where, slots, at = tensors(sequences, part[batch])
        hidden, predicted = model(tokens)[where, slots], at.numpy()
        if only is not None:
            asked = np.isin(predicted, only)
            hidden, predicted = hidden[torch.from_numpy(asked)], predicted[asked]
        for first in range(0, len(predicted), EVENTS):
            some, state = predicted[first : first + EVENTS], hidden[first : first + EVENTS]
            target = torch.from_numpy(sequences.item[some])
            low = sequences.offsets[np.searchsorted(sequences.offsets, some, "right") - 1]
            items, _ = model.beam(state, seen_pairs(sequences, low, some), width)
            hit = items == target[:, None]
            ranks.append(torch.where(hit.any(1), hit.int().argmax(1), model.n_items).numpy())
            logp.append(model.log_probability(state, target).double().numpy())
        rows.append(predicted)
        done += len(predicted)
        if progress is not None:
            progress(done, total)
    if not rows:
        none = np.zeros(0, np.int64)
        return Ranks(none, none, np.zeros(0))
    joined = np.concatenate(rows)
    order = np.argsort(joined)
    return Ranks(joined[order], np.concatenate(ranks)[order], np.concatenate(logp)[order])


def _optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, betas=(0.9, 0.98))


def _epoch(
    model: Generative, averaged: Generative, optimizer: torch.optim.Optimizer, train: Sequences,
    rng: np.random.Generator, steps: int, here: Place,
) -> tuple[float, int]:
    """Train for one epoch; return the mean loss (nats; of this process's share) and the number of steps so far."""
    part = windows(train, model.max_len, max(1, int(model.max_len * STRIDE)))
    slots = min(SLOTS, max(FEWEST_SLOTS, int((part.stop - part.start).sum()) // STEPS))
    total, seen = 0.0, 0
    model.train()
    for batch in batches(part, slots, rng):
        mine = here.share(batch)
        loss = None
        if len(mine):
            with here.autocast():
                nll = _nll(model, train, part[mine])
            total, seen = total + float(nll.detach().sum()), seen + len(nll)
            # of all events of the batch: shares differ in size, and the processes' gradients are summed
            loss = nll.mean() * (len(nll) / int((part.stop - part.first)[batch].sum()))
        steps = descend(loss, model, averaged, optimizer, steps, here)
    return total / max(1, seen), steps


def _nll(model: Generative, sequences: Sequences, part: Windows) -> Tensor:
    tokens, where, slots, rows = tensors(sequences, part)
    target = torch.from_numpy(sequences.item[rows.numpy()])
    tokens, where, slots, target = moved((tokens, where, slots, target), model.codes.device)
    return -model.log_probability(model(tokens)[where, slots], target)


@torch.no_grad()
def temper(model: Generative, fold: Fold) -> float:
    """Set the scale to what held-out events are likeliest under; return their mean loss (nats)."""
    tried = {}
    for scale in SCALES:
        model.scale.fill_(scale)
        tried[scale] = _loss(model, fold)
    best = min(SCALES, key=tried.__getitem__)
    model.scale.fill_(best)
    return tried[best]


def _validate(model: Generative, fold: Fold) -> dict[str, float]:
    """Return NDCG@10 of (at most `JUDGED`) held-out events, by a beam, and the mean loss (nats) of all."""
    begin = fold.begin
    rows = np.flatnonzero(np.arange(len(fold.sequences.item)) >= np.repeat(begin, fold.sequences.lengths()))
    only = np.sort(np.random.default_rng(0).permutation(rows)[:JUDGED])
    ranks = rank_generative(model, fold.sequences, begin, width=JUDGING, only=only).rank
    return {"ndcg_at_10": float(ndcg(ranks).mean()) if len(ranks) else 0.0, "nll": _loss(model, fold)}


@torch.no_grad()
def _loss(model: Generative, fold: Fold) -> float:
    """Return the mean negative log-likelihood of the held-out rows, nats."""
    model.eval()
    part = windows(fold.sequences, model.max_len, max(1, int(model.max_len * STRIDE)), fold.begin)
    parts = [_nll(model, fold.sequences, part[batch]) for batch in batches(part, 20_000)]
    return float(torch.cat(parts).mean()) if parts else 0.0
