"""A generative recommender over semantic IDs (TIGER-style): a transformer encodes items, a small decoder generates IDs.

An item is encoded as the sum of its digits' vectors, so a history of T items takes T tokens instead of T·L. The decoder
starts from the state after the history ([BOS]), reads the digits so far, and attends to the encoder's newest states
(`READ`, as many as TIGER reads items). Its softmax covers only the digits that the
trie allows, so the probabilities of all items sum to 1 and beams never leave the catalogue. Items without events are
reachable through digits they share with other items.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name the field uses

from models.data.dataset import IntArray
from models.data.sequences import Sequences
from models.generative.semantic_ids import SemanticIds, Trie
from models.measuring.outcomes import Ranks
from models.scorers.backbone import Block
from models.scorers.epochs import SequenceScorer
from models.scorers.ranks import seen_pairs, states_before

BEAMS = 64
EVENTS = 256  # events ranked at a time
READ = 20  # encoder states that the decoder attends to


class Reading(nn.Module):
    """Cross-attention of the decoder's states over the encoder's, added to the former."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.query, self.pair, self.out = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        """Return states (m, q, d) for x (m, q, d) over memory (m, M, d); zero rows of the memory are missing."""
        m, _, d = x.shape
        split = (m, -1, self.heads, d // self.heads)
        query = self.query(self.norm(x)).view(split).transpose(1, 2)
        key, value = (part.reshape(split).transpose(1, 2) for part in self.pair(memory).chunk(2, -1))
        there = (memory != 0).any(-1)[:, None, None]
        read = F.scaled_dot_product_attention(query, key, value, attn_mask=there)
        return x + self.out(read.transpose(1, 2).reshape(x.shape))


class Generative(SequenceScorer):
    """Encoder of histories, decoder of digits.

    Args:
        ids: semantic IDs of the catalogue.
        dim, layers, heads, max_len, dropout: size of the encoder; the decoder has one layer.

    A *state* of a moment is the newest `READ` encoder states up to it, oldest first, as one row of `width` numbers.

    Attributes:
        width: of a state.
        scale: factor of all digits' logits; 1 until `temper` sets it.
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
        self.width = READ * dim
        self.reading = Reading(dim, heads)
        self.decoder = Block(dim, heads, dropout)
        self.norm, self.out_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.heads = nn.ModuleList(nn.Linear(dim, size) for size in ids.sizes)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, history: Tensor) -> Tensor:
        """Return states (B, T + 1, width) for tokens (B, T), item row + 1, padded on the right with 0."""
        vectors = torch.stack([table(self.codes[:, level]) for level, table in enumerate(self.digits)]).sum(0)
        x = F.embedding(history, F.pad(vectors, (0, 0, 1, 0))) * self.dim**0.5
        x = torch.cat([self.start.expand(len(history), 1, -1), x], 1)
        x = F.dropout(x + self.positions.weight[: x.shape[1]], self.dropout, self.training)
        for block in self.encoder:
            x = block(x)
        newest = F.pad(self.norm(x), (0, 0, READ - 1, 0)).unfold(1, READ, 1)  # B, T + 1, d, READ
        return newest.transpose(2, 3).flatten(2)

    def spell(self, hidden: Tensor, word: Tensor) -> Tensor:
        """Return decoder states (m·k, l + 1, d) for states (m, width) and k words of digits so far each, (m·k, l)."""
        memory, places = hidden.unflatten(1, (READ, self.dim)), word.shape[1] + 1
        start = memory[:, -1].repeat_interleave(len(word) // len(memory), 0)
        parts = [start[:, None]] + [
            self.digits[level](word[:, level])[:, None] * self.dim**0.5 for level in range(places - 1)]
        x = torch.cat(parts, 1) + self.places.weight[:places]
        # All words of a moment share its memory, so keys and values are computed once.
        x = self.reading(x.reshape(len(memory), -1, self.dim), memory).view(len(word), places, self.dim)
        return self.out_norm(self.decoder(x))

    def allowed(self, state: Tensor, level: int, node: Tensor) -> Tensor:
        """Return log-probabilities (m, sizes[level]) of digits for states (m, d) at trie nodes (m,)."""
        shut = self.trie.children[level].to(node.device)[node] < 0
        return (self.scale * self.heads[level](state)).float().masked_fill(shut, -torch.inf).log_softmax(-1)

    def log_probability(self, hidden: Tensor, item: Tensor) -> Tensor:
        """Return log p (m · k,) of k items each, item rows (m · k,), for states (m, width), nats."""
        word, nodes = self.codes[item], self.trie.paths.to(item.device)[item]
        states = self.spell(hidden, word[:, :-1])
        parts = [
            self.allowed(states[:, level], level, nodes[:, level]).gather(1, word[:, level : level + 1])
            for level in range(word.shape[1])]
        return torch.cat(parts, 1).sum(1)

    @torch.no_grad()
    def scores(self, hidden: Tensor) -> Tensor:
        """Return log p (m, n) of every item for states (m, width); slow: one pass per item."""
        every = torch.arange(self.n_items, device=hidden.device)
        return torch.stack([self.log_probability(one[None], every) for one in hidden])

    @torch.no_grad()
    def beam(self, hidden: Tensor, seen: tuple[Tensor, Tensor], width: int = BEAMS) -> tuple[Tensor, Tensor]:
        """Return the best items (m, ≤ width) and their log p by beam search; missing items are −1 with −∞.

        Args:
            hidden: (m, width).
            seen: (row, item) pairs to exclude. Beams do not enter prefixes whose items the user has all seen.
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
            state = self.spell(hidden, word.flatten(0, 1))[:, -1]
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
            # Dead beams stay in the batch with score −∞ and point at a valid node.
            node = torch.where(torch.isinf(score), -1 if level == last else 0, node)
        return node, score


@torch.no_grad()
def rank_generative(
    model: Generative, sequences: Sequences, begin: IntArray, progress: Callable[[int, int], None] | None = None,
    width: int = BEAMS, only: IntArray | None = None,
) -> Ranks:
    """Rank the target of each user's events from row `begin` on by beam search; an item outside the beams is missed.

    Args:
        only: rank only these rows, ascending; None = all.
    """
    model.eval()
    rows, hidden = states_before(
        model, model.width, model.max_len, sequences, begin, rows=only, room=EVENTS * (model.max_len + 1))
    ranks, logp = np.zeros(len(rows), np.int64), np.zeros(len(rows))
    for first in range(0, len(rows), EVENTS):
        part = slice(first, first + EVENTS)
        some, state = rows[part], hidden[part]
        target = torch.from_numpy(sequences.item[some])
        items, _ = model.beam(state, seen_pairs(sequences, sequences.offsets[sequences.user(some)], some), width)
        hit = items == target[:, None]
        ranks[part] = torch.where(hit.any(1), hit.int().argmax(1), model.n_items).numpy()
        logp[part] = model.log_probability(state, target).double().numpy()
        if progress is not None:
            progress(min(first + EVENTS, len(rows)), len(rows))
    return Ranks(rows, ranks, logp)


