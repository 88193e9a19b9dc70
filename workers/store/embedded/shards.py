"""The shards of one store, by the names that clients give their collections: after a prefix, or without one.

Plain names are in the store's folder itself, as they were before there were prefixes; each prefix has a folder within
it. So a stack whose prefix was changed finds nothing of what it held before, as on a server.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from workers.store.embedded.engine import ITEM_FOLDER, OF_ITEMS, OF_USERS, Shard, ShardKind

KINDS = (OF_USERS, OF_ITEMS)
_PREFIX = re.compile(r"[A-Za-z0-9._-]{0,100}")  # as the setting `kafka.prefix` allows
_PREFIXED = ".prefixed"  # its name keeps it when the folder is settled


class Shards:
    """Opens what the folder holds; a second process that does so gets a FreshetError.

    Args:
        folder: of the store.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[str, Shard] = {}
        prefixes = [path.name.removeprefix("+") for path in sorted((folder / _PREFIXED).glob("+*"))]
        for prefix in ("", *prefixes):
            for kind in KINDS:
                self.find(prefix + kind.collection)

    def find(self, name: str) -> Shard | None:
        """Return the collection's shard, which may not be created yet; None = the store has no such collections."""
        if name in self._open:
            return self._open[name]
        for kind in KINDS:
            prefix = name.removesuffix(kind.collection)
            if prefix != name and _PREFIX.fullmatch(prefix):
                shard = Shard(self._place(prefix, kind), kind)
                if shard.dim is not None:
                    self._open[name] = shard
                return shard
        return None

    def create(self, name: str, dim: int) -> None:
        """Create the collection.

        Raises:
            FreshetError: there is one of another width, or the folder cannot be used.
        """
        shard = self.find(name)
        if shard is None:
            raise ValueError(f"{name} is no collection of this store")
        shard.create(dim)
        self._open[name] = shard

    def __iter__(self) -> Iterator[Shard]:
        return iter(list(self._open.values()))

    def close(self) -> None:
        """Flush and let go of the folder."""
        for shard in self:
            shard.close()

    def _place(self, prefix: str, kind: ShardKind) -> Path:
        folder = self._folder / _PREFIXED / f"+{prefix}" if prefix else self._folder
        return folder / ITEM_FOLDER if kind is OF_ITEMS else folder
