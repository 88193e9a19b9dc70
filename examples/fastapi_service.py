"""A web service that shows a user's list: it reads `recommendations` in the background and answers from memory.

A user's newest list is all it keeps, so it starts by reading the topic from the beginning, without a consumer group:
every instance has every user. `freshet console` serves the same and more; this is the smallest service of your own.

    .venv/bin/pip install -e '.[examples]'
    BOOTSTRAP=localhost:9092 .venv/bin/uvicorn --app-dir examples fastapi_service:app
"""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition
from fastapi import FastAPI, HTTPException

TOPIC = "recommendations"


class Lists:
    """The newest list of every user, kept up to date by a thread."""

    def __init__(self, bootstrap: str) -> None:
        self._bootstrap = bootstrap
        self._newest: dict[str, dict[str, Any]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def close(self) -> None:
        """Stop reading."""
        self._stop.set()
        self._thread.join(10)

    def of(self, user: str) -> dict[str, Any] | None:
        """Return the user's newest list, None if there is none."""
        return self._newest.get(user)

    def take(self, value: bytes) -> None:
        """Keep a list unless one that includes more events is here already: records may be delivered twice."""
        new = orjson.loads(value)
        held = self._newest.get(new["user_id"])
        if held is None or (new["count"], new["ranked_at"]) >= (held["count"], held["ranked_at"]):
            self._newest[new["user_id"]] = new

    def drop(self, user: str) -> None:
        """Forget a user: a record without a value says that the user was erased. Counts begin at 1 again then."""
        self._newest.pop(user, None)

    def _read(self) -> None:
        consumer = Consumer({"bootstrap.servers": self._bootstrap, "group.id": "unused", "enable.auto.commit": False,
                             "isolation.level": "read_committed"})
        numbers = consumer.list_topics(TOPIC, timeout=30).topics[TOPIC].partitions
        consumer.assign([TopicPartition(TOPIC, number, OFFSET_BEGINNING) for number in numbers])
        while not self._stop.is_set():
            for message in consumer.consume(500, 0.2):
                if message.error() is None and message.value():
                    self.take(message.value())
                elif message.error() is None and message.key():
                    self.drop(message.key().decode())
        consumer.close()


lists = Lists(os.environ.get("BOOTSTRAP", "localhost:9092"))


@asynccontextmanager
async def _lifespan(_: FastAPI) -> AsyncIterator[None]:
    lists.start()
    yield
    lists.close()


app = FastAPI(title="What to show", lifespan=_lifespan)


@app.get("/users/{user_id}/recommendations")
def recommendations(user_id: str, most: int = 10) -> dict[str, Any]:
    """Return the items to show, best first, and what they stand on."""
    found = lists.of(user_id)
    if found is None:  # a shop would answer with what is popular
        raise HTTPException(404, f"nothing is known of user {user_id}")
    return {"user_id": user_id, "items": [item["item_id"] for item in found["items"][:most]],
            "source": found["source"], "events": found["count"], "ranked_at": found["ranked_at"]}
