"""A knowledge worker that is killed at one point of its work, once: `python -m … POINT MARKER`.

The worker is the real one in a process of its own; only the moment of the SIGKILL is chosen.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from schemas.settings import load
from workers.roles.knowledge.generator import LlmGenerator
from workers.roles.knowledge.worker import main
from workers.runtime.loop import StreamWorker
from workers.store.qdrant import QdrantStore

# Point → the method, and whether the process dies before or after it. Each is reached in every pass or batch.
POINTS: dict[str, tuple[type, str, bool]] = {
    "generated, not stored": (LlmGenerator, "generate", False),
    "damaged point deleted, new one not stored": (QdrantStore, "discard", False),
    "stored, not announced": (QdrantStore, "upsert", False),
    "announced, not committed": (StreamWorker, "_commit", True),
    "committed": (StreamWorker, "_commit", False),
}


def die_at(point: str, marker: Path) -> None:
    """Make the second call of the point's method end this process."""
    kind, name, before = POINTS[point]
    real: Callable[..., Any] = getattr(kind, name)
    calls = 0

    def fatal(*args: Any, **more: Any) -> Any:
        nonlocal calls
        calls += 1
        if before and calls == 2:
            _die(marker)
        result = real(*args, **more)
        if calls == 2:
            _die(marker)
        return result

    setattr(kind, name, fatal)


def _die(marker: Path) -> None:
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    die_at(sys.argv[1], Path(sys.argv[2]))
    main(load())
