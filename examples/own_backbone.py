"""Bring your own backbone: a GRU instead of the transformer, measured like every row of Freshet's table.

A subclass of `Backbone` with another `forward`, registered under a name, and a row of the table with that name.
Freshet trains it, chooses its epoch and ranks the same held-out events as for all other rows; the gain over the
reference has an interval over users. The second row puts LWGR's knowledge of users on top of it, unchanged.

    .venv/bin/python examples/own_backbone.py
    .venv/bin/python examples/own_backbone.py --data my-shop --knowledge
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name the field uses

from models.data.fold import Fold
from models.scorers.backbone import Backbone, ItemSide
from models.scorers.backbones import BACKBONES
from models.systems.table import SYSTEMS, System
from schemas.settings import FitSettings, load
from workers.cli.evaluate import show
from workers.data import movielens
from workers.terminal.stages import Stages
from workers.training.evaluate import EvaluationRun, Evaluator


class GruBackbone(Backbone):
    """GRU4Rec's idea (Hidasi and others, 2016): a state that reads one item after the other."""

    def __init__(self, fold: Fold, fit: FitSettings, max_len: int) -> None:
        super().__init__(fold.n_items, fit.dim, 0, fit.heads, max_len, fit.dropout, fold.fresh())  # 0 layers
        self.gru = nn.GRU(fit.dim, fit.dim, batch_first=True)

    def forward(self, history: Tensor, side: ItemSide | None = None, at: Tensor | None = None) -> Tensor:
        """Return states (B, T + 1, d), or (B, q, d) for the slots `at`; slot t has read history[:, :t]."""
        vectors = F.pad((side or self.item_side())[0], (0, 0, 1, 0))  # token 0 is padding
        start = self.start.expand(history.shape[0], 1, -1)
        x = torch.cat([start, F.embedding(history, vectors) * self.dim**0.5], 1)
        states = self.norm(self.gru(F.dropout(x, self.dropout, self.training))[0])
        return states if at is None else states.gather(1, at[:, :, None].expand(-1, -1, self.dim))


BACKBONES["gru"] = GruBackbone
SYSTEMS["gru"] = System("gru", "a GRU over item ids", backbone="gru")
SYSTEMS["gru+lwgr"] = System(
    "gru+lwgr", "the GRU with LWGR's knowledge of users", backbone="gru", instruction="parallel-codebooks",
    extraction="cached-states", adaptor="hybrid-experts", fusion="start-attention", objective="primal-dual")


def main() -> None:
    """Measure the rows and print their tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of a data set; without it MovieLens-100K is fetched")
    parser.add_argument("--knowledge", action="store_true", help="the row with knowledge, too; it needs the LLM")
    parser.add_argument("--events", type=int, help="predict at most so many events")
    arguments = parser.parse_args()
    settings = load()
    with Stages() as stages:
        evaluator = Evaluator(settings, arguments.data or movielens.fetch(settings.home), stages)
        for name in ("gru", "gru+lwgr") if arguments.knowledge else ("gru",):
            wanted = EvaluationRun(name, "stream_time", events=arguments.events)
            show(evaluator.run(wanted), evaluator.gain(wanted))


if __name__ == "__main__":
    main()
