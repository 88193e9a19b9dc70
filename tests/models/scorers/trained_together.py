"""Trains three small models and writes their weights, in one process or, under torchrun, in several.

    python -m tests.models.scorers.trained_together FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from models.compute.devices import place
from models.data.fold import Fold
from models.data.sequences import Sequences
from models.generative.semantic_ids import quantise
from models.generative.training import extend_generative, train_generative
from models.scorers import training
from schemas.settings import FitSettings

ITEMS, USERS = 30, 40


def main(folder: Path) -> None:
    training.DROPPED = 0.0  # each process would drop different items
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 14, USERS)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    item = np.concatenate([(rng.integers(ITEMS) + np.arange(n)) % ITEMS for n in lengths])
    fold = Fold(Sequences(item, np.arange(len(item)), offsets), offsets[1:] - 1, ITEMS)
    settings = FitSettings(dim=16, layers=1, epochs=3, dropout=0.0, id_dropout=0.0, device="cpu")
    model, found = training.train_reference(fold, settings, 8)
    longer = training.extend(model, fold, settings)
    ids = quantise(torch.from_numpy(rng.normal(size=(ITEMS, 6))), levels=2, codes=5)
    spelled = extend_generative(train_generative(fold, ids, settings, 8)[0], fold, settings, None)
    here = place(settings.device)
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    state |= {f"longer.{name}": value.contiguous() for name, value in longer.state_dict().items()}
    state |= {f"spelled.{name}": value.contiguous() for name, value in spelled.state_dict().items()}
    save_file(state, folder / f"{here.rank}-of-{here.ranks}.safetensors",
              {name: f"{found[name]:.4f}" for name in ("epoch", "nll")})
    here.wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
