"""Language model states by key, in memory and in a file that several processes append to.

A record has fixed size: key, values (float16) and a checksum. Complete records never change, so reading needs no lock.
Appending takes a lock and first reads what others appended, so no key is written twice. Records that are cut off by a
crash or damaged on disk fail their checksum and are ignored.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
from filelock import FileLock

from schemas.errors import FreshetError

KEY = 16  # bytes per key: random keys collide after about 2⁶⁴


class StateLog:
    """States by key.

    Args:
        width: number of values per state.
        path: the file; None = in memory only.
    """

    def __init__(self, width: int, path: Path | None) -> None:
        self._record = np.dtype([("key", f"V{KEY}"), ("values", np.float16, (width,)), ("check", "<u4")])
        self._path = path
        self._values: dict[bytes, np.ndarray] = {}
        self._known = 0  # bytes of the file read so far
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.refresh()

    def __contains__(self, key: bytes) -> bool:
        return key in self._values

    def read(self, keys: list[bytes]) -> np.ndarray:
        """Return the values (n, width) float16 of existing keys."""
        none = np.zeros((0, *self._record["values"].shape), np.float16)
        return np.stack([self._values[key] for key in keys]) if keys else none

    def refresh(self) -> bool:
        """Read new records; return whether there were any."""
        if self._path is None or not self._path.is_file():
            return False
        n = (self._path.stat().st_size - self._known) // self._record.itemsize
        if n <= 0:
            return False
        for key, values, check in np.fromfile(self._path, self._record, n, offset=self._known):
            if zlib.crc32(key.tobytes() + values.tobytes()) == check:
                self._values[key.tobytes()] = values
        self._known += n * self._record.itemsize
        return True

    def add(self, made: dict[bytes, np.ndarray]) -> None:
        """Store values by key.

        Raises:
            FreshetError: the file cannot be written.
        """
        if self._path is not None and made:
            try:
                self._append(self._path, made)
            except OSError as error:
                raise FreshetError(
                    f"states cannot be kept in {self._path}: {error.strerror}; free some space, or set "
                    "FRESHET_HOME to a folder that can be written") from error
        self._values.update(made)

    def _append(self, path: Path, made: dict[bytes, np.ndarray]) -> None:
        with FileLock(path.with_suffix(".lock")):
            self.refresh()
            records = np.zeros(len(made), self._record)
            for row, (key, values) in enumerate(made.items()):
                records[row] = (key, values, zlib.crc32(key + values.tobytes()))
            records = records[[key not in self._values for key in made]]
            with path.open("ab") as file:
                file.truncate(self._known)  # remove a partial record of a crashed process
                file.write(records.tobytes())
            self._known += records.nbytes
