"""Descriptions of histories: states of the frozen language model after a fixed instruction, cached on disk.

A description depends only on the language model and the texts of the history, and the same moments recur in every
control, seed and run. Each description is stored under a hash of its inputs, so all runs share them. Measured with
Gemma 3 270M on 2,000 moments of MovieLens-100K with 12 items each, one thread of a busy machine: 61 s to make them,
0.03 s to open the file and read them; 1.3 kB each.
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

INSTRUCTION = "\nIn short, this person likes"  # the fixed instruction; a description follows it
_FORMAT = 1  # file format; another number ignores old files
_BATCH = 16  # histories per pass, of similar length to limit padding
_SAVE_EVERY_S = 5.0  # seconds of work that an interruption may lose


class Descriptions:
    """Descriptions of histories of one catalogue by one language model.

    Args:
        llm, cache: the language model and the states of the item texts.
        folder: folder with one file per language model; None = in memory only.

    Attributes:
        cache: the states of the item texts.

    Processes may share a folder: each reads what the others have written, and appends under a lock.
    """

    def __init__(self, llm: LanguageModel, cache: ItemCache, folder: Path | None = None) -> None:
        self._llm, self.cache = llm, cache
        about = f"{_FORMAT}|{INSTRUCTION}|{llm.fingerprint}"
        name = hashlib.sha256(about.encode()).hexdigest()[:24]
        self._kept = StateLog(llm.hidden_size, folder / f"{name}.f16" if folder is not None else None)
        self._items: dict[int, bytes] = {}

    def __call__(self, histories: IntArray, progress: Callable[[int, int], None] | None = None) -> Tensor:
        """Return descriptions (B, H') of histories (B, H) of item rows, −1 = none; float32 with float16 precision.

        Args:
            progress: called with the number of new descriptions done and the total to make.

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
        # Items are identified by the mean state of their text. Rows change with the catalogue, and items added after
        # the build have no other stable name.
        if row not in self._items:
            self._items[row] = hashlib.blake2b(self.cache.embeddings[row].tobytes(), digest_size=KEY).digest()
        return self._items[row]


@torch.no_grad()
def describe(llm: LanguageModel, cache: ItemCache, histories: IntArray) -> Tensor:
    """Return mean last states (B, H') of the fixed instruction after each history (B, H), −1 = none."""
    ids = torch.tensor(llm.tokenizer(INSTRUCTION, add_special_tokens=False).input_ids, device=llm.device)
    memory = cache.history(histories)
    positions = memory.next_position[:, None] + torch.arange(len(ids), device=llm.device)
    return llm.run(llm.embed(ids).expand(len(histories), -1, -1), positions, memory).float().mean(1).cpu()


def _silent(done: int, total: int) -> None:
    pass
