"""The container `qdrant` where there is no Qdrant: the embedded store, for other hosts and without a key.

    python -m tests.containers.store FOLDER PORT
"""

from __future__ import annotations

import sys
from pathlib import Path

from aiohttp import web

from workers.store.embedded.server import application
from workers.store.embedded.shards import Shards


@web.middleware
async def admit(request: web.Request, handler: web.Handler) -> web.StreamResponse:
    """Let in what the embedded store refuses: requests by the container's name, without its key."""
    headers = request.headers.copy()
    headers["Host"], headers["api-key"] = "127.0.0.1", "rehearsal"
    return await handler(request.clone(headers=headers))


def main(folder: Path, port: int) -> None:
    """Serve until SIGTERM."""
    app = application(Shards(folder), "rehearsal")
    app.middlewares.append(admit)
    web.run_app(app, host="0.0.0.0", port=port, access_log=None, print=None)  # noqa: S104 - of its own network


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
