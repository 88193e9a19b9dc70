"""The knowledge role, ended with SIGKILL at a point of its first batch: `generated`, `stored` or `announced`.

Run as `python -m tests.faults.dying_worker POINT`. It is the real role on real servers; only the point of its death is
chosen: after the model has made the knowledge, after the store has taken it, or after the updates are on the topic and
before the offsets are committed.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from schemas.settings import load
from workers.roles.knowledge import worker as role
from workers.roles.knowledge.generator import LlmGenerator
from workers.runtime.loop import StreamWorker
from workers.store.qdrant import QdrantStore

POINTS = ("generated", "stored", "announced")


def dies(owner: Any, name: str, *, before: bool = False) -> None:
    """End the process before or after the first call of a method."""
    original: Callable[..., Any] = getattr(owner, name)

    @functools.wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not before:
            original(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, name, call)


def main() -> None:
    match sys.argv[1]:
        case "generated":
            dies(LlmGenerator, "generate")
        case "stored":
            dies(QdrantStore, "upsert")
        case "announced":
            dies(StreamWorker, "_commit", before=True)
        case other:
            raise SystemExit(f"{other!r} is none of {', '.join(POINTS)}")
    role.main(load())


if __name__ == "__main__":
    main()
