"""Backbones of others: where a scorer from outside this repository is plugged in, to be measured beside its rows.

`BACKBONES["gru"] = build`, and a row of `models.systems.table.SYSTEMS` whose backbone is "gru". Freshet's loop trains
the scorer on the fold that all rows have, and chooses its epoch on the same held-out events. `examples/own_backbone.py`
does it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # they import torch, and the table of systems is read without it
    from models.data.fold import Fold
    from models.scorers.backbone import Backbone
    from schemas.settings import FitSettings

BACKBONES: dict[str, Callable[[Fold, FitSettings, int], Backbone]] = {}
"""Name → what returns an untrained subclass of `Backbone` for a fold, settings and the newest items that it reads.

A subclass needs its own `forward`: states (B, T + 1, d), of which slot t has read the first t items, or (B, q, d) for
the slots `at`. Item vectors, scores and new items are the base class's, unless it has its own `item_side` and `scores`.
"""
