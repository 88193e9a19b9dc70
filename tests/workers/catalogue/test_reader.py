"""The topic `catalogue`, written by `freshet produce --catalogue`, followed by several processes."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from schemas.catalogue.item import CatalogueItem
from schemas.codec import encode
from schemas.settings import Settings
from schemas.topics import CATALOGUE
from tests.workers.brokers import BROKERS, kill_broker, settings_for, start_broker
from workers.catalogue.reader import CatalogueReader
from workers.catalogue.view import Catalogue, Entry
from workers.cli import app
from workers.data.produce import EventProducer
from workers.kafka.topics import create_topics

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=BROKERS)
def settings(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    broker = start_broker(request.param, tmp_path_factory.mktemp("broker"))
    made = replace(Settings(), kafka=settings_for(broker))
    create_topics(made.kafka)
    yield made
    kill_broker(broker)


def polled(reader: CatalogueReader, wanted: int) -> list[Entry]:
    """Return at least `wanted` entries."""
    out: list[Entry] = []
    deadline = time.monotonic() + 30
    while len(out) < wanted:
        out += reader.poll()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return out


def test_what_was_produced_is_read_by_all_and_again_after_a_restart(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = tmp_path / "items.jsonl"
    file.write_text('{"item_id": "x", "title": "New"}\n{"item_id": "a", "available": false}\n{"title": "no id"}\n'
                    '{"item_id": "b", "removed": true}\n')
    monkeypatch.setenv("FRESHET_HOME", str(tmp_path))
    monkeypatch.setenv("FRESHET_KAFKA_BOOTSTRAP", settings.kafka.bootstrap)
    done = CliRunner().invoke(app, ["produce", str(file), "--catalogue"])
    assert "produced 3 items to catalogue" in done.stdout
    assert done.exit_code == 1  # of the row without an id
    reader = CatalogueReader(settings.kafka)
    catalogue = Catalogue(["a", "b", "c"])
    assert catalogue.apply(reader.catch_up()) == [3]
    assert catalogue.items == ["a", "b", "c", "x"]
    assert catalogue.available.tolist() == [False, False, True, True]

    producer = EventProducer(settings.kafka)
    producer.record(CATALOGUE, "x", b"no item")
    producer.record(CATALOGUE, "x", None)
    producer.record(CATALOGUE, "a", encode(CatalogueItem(item_id="a", title="Back")))
    producer.flush()
    catalogue.apply(polled(reader, 2))
    assert catalogue.available.tolist() == [True, False, True, False]
    other = CatalogueReader(settings.kafka)
    again = Catalogue(["a", "b", "c"])
    again.apply(other.catch_up())
    for name, row in again.rows.items():
        assert again.available[row] == catalogue.available[catalogue.rows[name]]
        assert again.entries[row].title == catalogue.entries[catalogue.rows[name]].title
    reader.close()
    other.close()

    # the next fit reads it: what the topic says replaces the file's items, new ones come to their end
    data = tmp_path / "items of the fit.jsonl"
    data.write_text('{"item_id": 7, "title": "Old"}\n{"item_id": "a", "title": "First", "attributes": ["soap"]}\n'
                    '{"item_id": "x", "title": "Stays, for histories"}\n')
    done = CliRunner().invoke(app, ["catalogue", str(data)])
    assert done.exit_code == 0, done.output
    assert "3 items, 1 of them" in done.stdout
    assert "1 records of the topic cannot be used" in done.stdout
    found = [json.loads(line) for line in data.read_text().splitlines()]
    assert [(row["item_id"], row["title"]) for row in found] == [
        ("7", "Old"), ("a", "Back"), ("x", "Stays, for histories")]
    data.write_text("no item\n")
    refused = CliRunner().invoke(app, ["catalogue", str(data)])
    assert refused.exit_code == 1
    assert "line 1: no item" in str(refused.exception)
    assert data.read_text() == "no item\n"
