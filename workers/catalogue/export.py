"""The topic `catalogue` as a file that `freshet fit` reads."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import orjson

from schemas.catalogue.item import CatalogueItem
from schemas.codec import decode
from schemas.errors import FreshetError, PoisonError
from schemas.files import write_whole
from schemas.settings import KafkaSettings
from schemas.topics import CATALOGUE
from workers.catalogue.reader import read_entry
from workers.kafka.reader import TopicReader

PATIENCE_S = 60.0


def on_topic(settings: KafkaSettings, within_s: float = PATIENCE_S) -> tuple[dict[str, CatalogueItem | None], int]:
    """Return the newest record of each item, None for a removed one, and how many records cannot be used.

    Raises:
        FreshetError: there is no such topic, no broker answers, or the topic is not read to its end in time.
    """
    reader = TopicReader(settings, [CATALOGUE.name], from_beginning=True)
    out: dict[str, CatalogueItem | None] = {}
    bad = 0
    deadline = time.monotonic() + within_s
    try:
        while not reader.ended:
            if time.monotonic() > deadline:
                raise FreshetError(f"the topic {CATALOGUE.name} was not read to its end within {within_s:.0f} s")
            for record in reader.poll(0.1):
                value = record.value()
                try:
                    item_id = read_entry(record.key(), value, 1).item_id
                    out[item_id] = None if value is None else decode(CatalogueItem, value)
                except PoisonError:  # the knowledge role sends it to the dead letters
                    bad += 1
    finally:
        reader.close()
    return out, bad


def merged(
    rows: Iterable[Mapping[str, Any]], came: Mapping[str, CatalogueItem | None],
) -> list[dict[str, Any]]:
    """Return the rows of a file with what the topic says: changed items replaced, new ones at the end.

    An item that was removed keeps its row, because histories name it; the topic keeps it out of the lists.

    Args:
        rows: each with `item_id`, a text.
        came: by item id, None = removed.
    """
    out: dict[str, dict[str, Any]] = {row["item_id"]: dict(row) for row in rows}
    for item_id, item in came.items():
        if item is not None:
            out[item_id] = item.model_dump(mode="json")
    return list(out.values())


def export(settings: KafkaSettings, file: Path) -> tuple[int, int, int]:
    """Write the topic's items into a file of JSON lines, over the items that it has.

    Returns:
        Items in the file, items from the topic, and records that cannot be used.

    Raises:
        FreshetError: a line of the file is no item, or as `on_topic`.
    """
    rows = []
    for number, line in enumerate(file.read_bytes().splitlines() if file.exists() else [], 1):
        try:
            row = orjson.loads(line)
            row["item_id"] = str(row["item_id"])
        except (orjson.JSONDecodeError, KeyError, TypeError):
            raise FreshetError(f"{file}, line {number}: no item; each line is an object with item_id, and this command "
                               "leaves a file alone that it does not understand") from None
        rows.append(row)
    came, bad = on_topic(settings)
    found = merged(rows, came)
    write_whole(file, b"".join(orjson.dumps(row) + b"\n" for row in found))
    return len(found), sum(item is not None for item in came.values()), bad
