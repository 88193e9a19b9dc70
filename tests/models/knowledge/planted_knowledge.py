"""Knowledge that tells what comes, or nothing, in place of a language model's."""

import numpy as np
import torch
from torch import nn

from models.knowledge.sources import Source


class Planted(Source):
    """Knowledge (B, K, d) from a table of raw vectors (users, events + 1, w), through a linear layer.

    A user's row is the number of earlier events.
    """

    def __init__(self, table, vectors, dim, snapshots=1024):
        super().__init__()
        self.items, self.snapshots, self.vectors = 4, snapshots, vectors
        self.register_buffer("table", torch.as_tensor(table))
        self.adapt = nn.Linear(table.shape[-1], vectors * dim, bias=False)

    def forward(self, moments):
        raw = self.table[torch.from_numpy(moments.user), torch.from_numpy(moments.length)]
        return self.adapt(raw).unflatten(-1, (self.vectors, -1))


class Foretold:
    """Descriptions (B, w) of histories: what comes after the newest item, which no history tells."""

    def __init__(self, cache, sequences, table):
        self.cache, self._found = cache, {}
        for user, (low, high) in enumerate(zip(sequences.offsets[:-1], sequences.offsets[1:], strict=True)):
            for at in range(low, high + 1):
                self._found[tuple(sequences.item[max(low, at - 4) : at])] = table[user, at - low]

    def __call__(self, histories, progress=None):
        return torch.as_tensor(np.stack([self._found[tuple(row[row >= 0])] for row in histories]))
