from pathlib import Path

import orjson
import pytest

from schemas import documents
from schemas.settings import load, rows
from schemas.topics import TOPICS

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("name", list(documents.documents()))
def test_docs_are_current(name: str) -> None:
    content = documents.documents()[name]
    assert (DOCS / name).is_file(), "run `freshet schema` and commit docs/"
    assert (DOCS / name).read_bytes() == content, "run `freshet schema` and commit docs/"


def lines_of_example() -> list[str]:
    text = (DOCS.parent / "deploy" / "freshet.env").read_text()
    assert text == documents.env_file(), "run `freshet schema` and commit deploy/freshet.env"
    return [line.removeprefix("#") for line in text.splitlines() if line.startswith("#FRESHET_")]


def test_the_example_of_an_env_file_has_every_setting_with_its_default() -> None:
    given = dict(line.split("=", 1) for line in lines_of_example())
    assert list(given) == [row.file_variable or row.variable for row in rows()]
    assert load(given) == load({})


def test_no_line_of_the_example_means_something_else_to_compose() -> None:
    for line in lines_of_example():
        value = line.split("=", 1)[1]
        assert not {"$", "'", '"', " "} & set(value), f"compose would not take this as it stands: {line}"


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
