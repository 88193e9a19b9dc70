from pathlib import Path

import orjson
import pytest

from schemas import documents
from schemas.topics import TOPICS

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("name", list(documents.documents()))
def test_docs_are_current(name: str) -> None:
    content = documents.documents()[name]
    assert (DOCS / name).is_file(), "run `freshet schema` and commit docs/"
    assert (DOCS / name).read_bytes() == content, "run `freshet schema` and commit docs/"


def test_every_topic_has_a_channel_and_every_reference_resolves() -> None:
    document = documents.asyncapi()
    assert set(document["channels"]) == set(TOPICS)

    def walk(node: object) -> None:
        if isinstance(node, dict):
            for key, value in node.items():
                if key == "$ref":
                    target: object = document
                    for part in value.removeprefix("#/").split("/"):
                        assert isinstance(target, dict)
                        target = target[part]
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)

    walk(document)


def test_the_event_schema_lists_required_fields_and_time_types() -> None:
    schema = orjson.loads(documents.documents()["schemas/behaviour-events.json"])
    assert set(schema["required"]) == {"user_id", "item_id", "event_time"}
    assert {kind["type"] for kind in schema["properties"]["event_time"]["anyOf"]} == {"number", "string"}


def test_write_returns_the_changed_files(tmp_path: Path) -> None:
    assert len(documents.write(tmp_path)) == len(TOPICS) + 4
    assert documents.write(tmp_path) == []
