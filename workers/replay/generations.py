"""Cache of generations on disk: knowledge for a history is generated once, for all replays.

A generation depends on the model version and the history only. Replays of many policies on the same data request the
same generations again and again. A cached one still counts as a call, with the seconds that it took when it was
generated.

Cached generations are never replaced, so the same replay from the same folder gives the same bits. (The last bits of a
generation depend on which others share its forward pass, so they may change after the folder is deleted.)
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import orjson
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from models.knowledge.generation import Generation
from schemas.files import written_whole
from schemas.settings import LlmSettings
from workers.roles.knowledge.worker import Generator
from workers.training.code_hash import files_of, hash_of

FLUSH = 1024  # generations per file: 1.4 MB at 5 × 64 float32; a crash loses about a minute of generating
_KEY, _SECONDS = "_key", "_seconds"
_FIELDS = tuple(field.name for field in fields(Generation))

Row = dict[str, NDArray[np.generic]]


def folder_of(home: Path, model_version: str, llm: LlmSettings) -> Path:
    """Return the folder of a model's generations. It depends on the LLM's settings and the code."""
    chosen = asdict(llm)
    for name in ("device", "batch"):  # these change where and how fast it runs, but not the result
        del chosen[name]
    digest = hashlib.blake2b(orjson.dumps(chosen, option=orjson.OPT_SORT_KEYS), digest_size=6)
    digest.update(hash_of(files_of("models")).encode())
    return home / "cache" / "replay" / f"{model_version}-{digest.hexdigest()}"


def key_of(history: Sequence[str]) -> bytes:
    """Return the key of a history. Every item counts, because the backbone reads all of them."""
    return hashlib.blake2b("\x1f".join(history).encode("utf-8", "surrogatepass"), digest_size=16).digest()


class CachedGenerator:
    """A `Generator` with a cache.

    Args:
        folder: folder of this model's generations, see `folder_of`.
        model_version: the version that generates.
        load: loads the real generator; called on the first cache miss.

    Attributes:
        llm_s: seconds that the calls so far took when they were generated.
        made: number of generations computed here instead of found in the cache.
    """

    def __init__(self, folder: Path, model_version: str, load: Callable[[], Generator]) -> None:
        self.model_version, self.has_knowledge = model_version, True
        self.llm_s = 0.0
        self.made = 0
        self._folder = folder
        self._load = load
        self._generator: Generator | None = None
        self._rows: dict[bytes, tuple[Row, float]] = {}
        self._new: list[bytes] = []
        for path in sorted(folder.glob("*.safetensors")):
            self._read(path)

    def __len__(self) -> int:
        return len(self._rows)

    def generate(self, histories: Sequence[Sequence[str]], users: Sequence[str] = ()) -> Generation:
        """Return the knowledge of users from their item ids, oldest first. The cache key is the history alone."""
        keys = [key_of(history) for history in histories]
        self._make(dict(zip(keys, histories, strict=True)))
        rows = [self._rows[key] for key in keys]
        self.llm_s += sum(seconds for _, seconds in rows)
        return Generation(**{name: np.stack([row[name] for row, _ in rows]) for name in _FIELDS})

    def prepare(self, histories: Sequence[Sequence[str]], step: Callable[[int, int], None], batch: int = 128) -> None:
        """Generate what is missing, in large batches of equally long histories. This does not count as calls.

        Args:
            histories: item ids, oldest first.
            step: reports progress: done, total.
            batch: histories per batch.
        """
        missing = {key: history for history in histories if (key := key_of(history)) not in self._rows}
        order = sorted(missing, key=lambda key: (len(missing[key]), key))
        try:
            for start in range(0, len(order), batch):
                self._make({key: missing[key] for key in order[start:start + batch]})
                step(min(start + batch, len(order)), len(order))
        finally:
            self.flush()

    def flush(self) -> None:
        """Write new generations to disk."""
        if not self._new:
            return
        rows = [self._rows[key] for key in self._new]
        arrays = {name: np.stack([row[name] for row, _ in rows]) for name in _FIELDS}
        arrays[_KEY] = np.frombuffer(b"".join(self._new), np.uint8).reshape(-1, 16)
        arrays[_SECONDS] = np.array([seconds for _, seconds in rows])
        with written_whole(self._folder / f"{time.time_ns()}-{os.getpid()}.safetensors") as scratch:
            save_file(arrays, scratch)
        self._new = []

    def _make(self, wanted: dict[bytes, Sequence[str]]) -> None:
        missing = [key for key in wanted if key not in self._rows]
        if not missing:
            return
        if self._generator is None:
            self._generator = self._load()
        began = time.perf_counter()
        made = self._generator.generate([wanted[key] for key in missing])
        seconds = (time.perf_counter() - began) / len(missing)
        for place, key in enumerate(missing):
            self._rows[key] = ({name: getattr(made, name)[place] for name in _FIELDS}, seconds)
        self.made += len(missing)
        self._new.extend(missing)
        if len(self._new) >= FLUSH:
            self.flush()

    def _read(self, path: Path) -> None:
        try:
            arrays = load_file(path)
            keys = [row.tobytes() for row in arrays[_KEY]]
            parts = {name: arrays[name] for name in _FIELDS}
            seconds = arrays[_SECONDS].tolist()
        except (SafetensorError, KeyError):  # truncated, or written by another release: generate again
            path.unlink()
            return
        for place, key in enumerate(keys):
            self._rows.setdefault(key, ({name: part[place] for name, part in parts.items()}, seconds[place]))
