"""Cache of trained behaviour scorers on disk. Runs that share a scorer, and resumed runs, do not train it again.

A file's name contains a hash of everything its weights depend on: the untrained weights (and so the seed, shape and
texts), the events, the training settings, and the code of `models.scorers.training` and its imports.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path

import numpy as np
import orjson
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from models.compute.devices import place
from models.data.fold import Fold
from models.scorers.training import DenseScorer
from schemas.files import written_whole
from schemas.settings import FitSettings
from workers.training.code_hash import closure, hash_of

OTHER = {  # settings that do not affect scorers
    "system", "device", "harm", "knowledge_epochs", "instructions", "codes", "id_components", "id_dropout",
    "train_fraction"}


class ScorerCache:
    """A folder of trained scorers; implements `models.scorers.training.Keep`.

    Args:
        folder: created when first needed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(
        self, stage: str, start: DenseScorer, fold: Fold, settings: FitSettings,
        train: Callable[[], tuple[DenseScorer, dict[str, float]]],
    ) -> tuple[DenseScorer, dict[str, float]]:
        """Return the cached scorer for this start, data and code, or train and cache it."""
        path = self.folder / f"{stage}-{_key(stage, start, fold, settings)}.safetensors"
        found = _read(path)
        if found is None:
            trained, about = train()
            here = place(settings.device)
            if here.is_first:
                _write(path, trained, about)
            here.wait()
            return trained, about
        weights, about = found
        start.load_state_dict(weights)
        return start.eval().requires_grad_(False), about


@cache
def code_of(module: str) -> str:
    """Return a hash of a module and of everything it imports from its package."""
    return hash_of(closure(module))


def _key(stage: str, start: DenseScorer, fold: Fold, settings: FitSettings) -> str:
    chosen = {name: value for name, value in asdict(settings).items() if name not in OTHER}
    shape = [len(start.blocks), start.blocks[0].heads, start.max_len, start.dropout]
    digest = hashlib.sha256(orjson.dumps(
        [stage, type(start).__name__, code_of("models.scorers.training"), chosen, shape, fold.n_items],
        option=orjson.OPT_SORT_KEYS))
    for name, tensor in sorted([*start.named_parameters(), *start.named_buffers()], key=lambda pair: pair[0]):
        digest.update(name.encode() + np.ascontiguousarray(tensor.detach().cpu().numpy()).tobytes())
    for column in (fold.sequences.item, fold.sequences.offsets, fold.begin):
        digest.update(np.ascontiguousarray(column).tobytes())
    # Ties decide which history the held-out events, and so the epochs, are judged from.
    digest.update(fold.sequences.known(np.arange(len(fold.sequences.item))).tobytes())
    return digest.hexdigest()[:24]


def _read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, float]] | None:
    """Return weights and metrics of a file, or None if it is missing or damaged."""
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, orjson.loads(file.metadata()["about"])  # noqa: SIM118
    except (FileNotFoundError, SafetensorError, KeyError, orjson.JSONDecodeError):
        return None


def _write(path: Path, scorer: DenseScorer, about: dict[str, float]) -> None:
    state = {name: value.detach().cpu().contiguous() for name, value in scorer.state_dict().items()}
    with written_whole(path) as scratch:
        save_file(state, scratch, {"about": orjson.dumps(about).decode()})
