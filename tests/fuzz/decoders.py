"""All decoders, opened together: some need a folder or a store."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.fuzz import embedded_store, files, messages
from tests.fuzz.campaign import Decoder

# Files of 100,000 inputs go to memory where a system has such a folder: a busy disk takes longer than all decoders.
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108


@contextmanager
def decoders() -> Iterator[list[Decoder]]:
    """Yield every decoder."""
    logging.disable(logging.CRITICAL)
    try:
        with (tempfile.TemporaryDirectory(prefix="freshet-fuzz-", dir=MEMORY) as folder,
              embedded_store.store(Path(folder)) as ask):
            yield [*messages.decoders(), *files.decoders(Path(folder) / "files"), *embedded_store.decoders(ask)]
    finally:
        logging.disable(logging.NOTSET)
