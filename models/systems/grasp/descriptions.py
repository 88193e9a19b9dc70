"""Descriptions of histories, made once: what the frozen language model answers to a fixed instruction, kept on disk.

A description depends on the language model and on the texts of the history alone, while the same moments come back in
every control and seed, and at the test in every run. Each is kept under a hash of just that, so any number of runs
shares them. Measured (Gemma 3 270M, 2,000 moments of MovieLens-100K, 12 items each, one thread of a busy machine): 61 s
to make them, 0.03 s to open the file and read them; 1.3 kB each.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.data.dataset import IntArray
from models.language.item_cache import ItemCache
from models.language.llm import LanguageModel
from models.language.state_log import KEY, StateLog
from schemas.errors import FreshetError

INSTRUCTION = "\nIn short, this person likes"  # the fixed instruction: what follows it is a description
_FORMAT = 1  # of the file; a change of it makes old ones unused
_BATCH = 16  # histories per pass, of like length: little padding
_SAVE_EVERY_S = 5.0  # how much describing an interruption may cost


class Descriptions:
    """Descriptions of histories of one catalogue by one language model.

    Args:
        llm, cache: the language model and the states of the item texts.
        folder: where they are kept, a file per language model; None = in memory only.

    Attributes:
        cache: as given.

    Processes may share a folder: each reads what the others have written, and appends under a lock.
    """

    def __init__(self, llm: LanguageModel, cache: ItemCache, folder: Path | None = None) -> None:
        self._llm, self.cache = llm, cache
        about = f"{_FORMAT}|{INSTRUCTION}|{llm.fingerprint}"
        name = hashlib.sha256(about.encode()).hexdigest()[:24]
        self._kept = StateLog(llm.hidden_size, folder / f"{name}.f16" if folder is not None else None)
        self._items: dict[int, bytes] = {}

    def __call__(self, histories: IntArray, progress: Callable[[int, int], None] | None = None) -> Tensor:
        """Return descriptions (B, H') float32, of float16 precision, of histories (B, H) of item rows, −1 = none.

        Args:
            progress: called with histories described and histories in all, of those that were not there.

        Raises:
            FreshetError: a state does not fit float16, or the folder cannot be written.
        """
        keys = [self._key(history) for history in np.asarray(histories)]
        missing = {key: row for row, key in enumerate(keys) if key not in self._kept}
        if missing and self._kept.refresh():
            missing = {key: row for key, row in missing.items() if key not in self._kept}
        if missing:
            self._make(missing, np.asarray(histories), progress or _silent)
        return torch.from_numpy(self._kept.read(keys).astype(np.float32))

    def _make(self, missing: dict[bytes, int], histories: IntArray, progress: Callable[[int, int], None]) -> None:
        rows = np.fromiter(missing.values(), np.int64, len(missing))
        sizes = np.where(histories[rows] >= 0, self.cache.lengths[histories[rows]], 0).sum(1)
        order = np.argsort(sizes, kind="stable")
        keys = list(missing)
        made: dict[bytes, np.ndarray] = {}
        saved = time.monotonic()
        try:
            for at in range(0, len(order), _BATCH):
                chunk = order[at : at + _BATCH]
                states = describe(self._llm, self.cache, histories[rows[chunk]]).half()
                if not bool(torch.isfinite(states).all()):
                    raise FreshetError(
                        f"descriptions by {self._llm.model_id!r} do not fit float16; use another model")
                made.update(zip((keys[place] for place in chunk), states.numpy(), strict=True))
                progress(at + len(chunk), len(order))
                if time.monotonic() - saved > _SAVE_EVERY_S:
                    self._kept.add(made)
                    made, saved = {}, time.monotonic()
        finally:
            self._kept.add(made)

    def _key(self, history: IntArray) -> bytes:
        digest = hashlib.blake2b(digest_size=KEY)
        for row in history[history >= 0].tolist():
            digest.update(self._item(row))
        return digest.digest()

    def _item(self, row: int) -> bytes:
        # An item is known by the mean state of its text, not by its row: rows change with the catalogue, and items that
        # came after the build have no other name.
        if row not in self._items:
            self._items[row] = hashlib.blake2b(self.cache.embeddings[row].tobytes(), digest_size=KEY).digest()
        return self._items[row]


@torch.no_grad()
def describe(llm: LanguageModel, cache: ItemCache, histories: IntArray) -> Tensor:
    """Return what a fixed instruction makes of a batch of histories (B, H), −1 = none: mean last states (B, H')."""
    ids = torch.tensor(llm.tokenizer(INSTRUCTION, add_special_tokens=False).input_ids, device=llm.device)
    memory = cache.history(histories)
    positions = memory.next_position[:, None] + torch.arange(len(ids), device=llm.device)
    return llm.run(llm.embed(ids).expand(len(histories), -1, -1), positions, memory).float().mean(1).cpu()


def _silent(done: int, total: int) -> None:
    pass
