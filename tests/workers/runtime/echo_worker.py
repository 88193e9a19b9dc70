"""A worker process for the loop's tests: every knowledge request becomes a knowledge update. Its mode, `sys.argv[1]`,
makes something go wrong; everything around it is the real loop on a real broker.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from schemas.errors import StoreUnavailableError
from schemas.messages import KnowledgeRequest, KnowledgeUpdate
from schemas.settings import load
from schemas.topics import KNOWLEDGE_REQUESTS, KNOWLEDGE_UPDATES
from workers.kafka.outbox import Output
from workers.runtime.loop import StreamWorker


def update(request: KnowledgeRequest) -> Output:
    return Output(KNOWLEDGE_UPDATES, request.user_id, KnowledgeUpdate(
        user_id=request.user_id, version=request.version, model_version="echo", reason=request.reason,
        count=request.count, event_time=request.event_time, history_hash="", caused_at=0.0, generated_at=0.0))


def main() -> None:
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    settings, mode = load(), sys.argv[1]
    flag = settings.home / "flag"

    def process(requests: Sequence[KnowledgeRequest]) -> Iterator[list[Output]]:
        half = (len(requests) + 1) // 2
        for part in (requests[:half], requests[half:]):
            if mode == "dies" and any(r.user_id == "deadly" for r in part) and not flag.exists():
                flag.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            if mode == "chokes" and any(r.user_id == "bad" for r in part):
                raise RuntimeError("cannot digest this\nsecond line")
            if mode == "broken":
                raise KeyError("always")
            if mode == "store" and not flag.exists():
                raise StoreUnavailableError("the store is away")
            if mode == "hangs":
                time.sleep(3600)
            if mode == "slow":
                time.sleep(5)
            yield [update(request) for request in part]

    def between() -> None:
        if mode == "loads" and flag.exists():  # a new model
            flag.unlink()
            time.sleep(float(sys.argv[3]))

    StreamWorker(
        settings, "echo", "echo", KNOWLEDGE_REQUESTS, process, batch=int(sys.argv[2]), between=between).run()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[3]))
    main()
