"""The contracts as documents: JSON Schema per topic and one AsyncAPI 3 document, made from the table of topics.

`freshet schema` writes them under `docs/`; a test compares what is there with what these functions return.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema

from schemas.settings import KafkaSettings, rows
from schemas.topics import TOPICS, Topic

DRAFT = GenerateJsonSchema.schema_dialect
# Written by other services or read by them; the rest is between the roles.
_PRODUCED_OUTSIDE = {"behaviour-events"}
_CONSUMED_OUTSIDE = {"recommendations", "knowledge-updates", "dead-letters"}


def json_schema(topic: Topic) -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of a topic's values: what a producer may send."""
    return {"$schema": DRAFT, "title": topic.model.__name__} | topic.model.model_json_schema(mode="validation")


def asyncapi() -> dict[str, Any]:
    """Return the AsyncAPI 3.0 document: channels, messages and what an outside service does with them."""
    schemas: dict[str, Any] = {}
    channels: dict[str, Any] = {}
    operations: dict[str, Any] = {}
    for topic in TOPICS.values():
        name = topic.model.__name__
        schemas |= _component(topic.model)
        channels[topic.name] = {
            "address": topic.name,
            "description": f"{topic.purpose} Written by {topic.writer}, read by {topic.readers}.",
            "messages": {name: {"$ref": f"#/components/messages/{name}"}},
            "bindings": {"kafka": {
                "topic": topic.name,
                "partitions": topic.partitions or KafkaSettings().partitions,
                "topicConfiguration": {
                    "cleanup.policy": topic.cleanup.split(","), "retention.ms": topic.retention_ms},
                "bindingVersion": "0.5.0",
            }},
        }
        # From the application's side: it receives what others produce and sends what they consume.
        action = "receive" if topic.name in _PRODUCED_OUTSIDE else "send" if topic.name in _CONSUMED_OUTSIDE else None
        if action:
            operations[f"{action}-{topic.name}"] = {
                "action": action,
                "channel": {"$ref": f"#/channels/{topic.name}"},
                "summary": topic.purpose,
                "messages": [{"$ref": f"#/channels/{topic.name}/messages/{name}"}],
            }
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Freshet",
            "version": "1.0.0",
            "description": "Behaviour events in, recommendations out, with every decision in between on a topic. "
                           "Values are JSON; keys are the named field as UTF-8, partitioned by murmur2.",
        },
        "defaultContentType": "application/json",
        "servers": {"kafka": {
            "host": "{bootstrap}", "protocol": "kafka",
            "variables": {"bootstrap": {
                "default": "localhost:9092", "description": "any Kafka cluster, or the embedded broker"}}}},
        "channels": channels,
        "operations": operations,
        "components": {
            "messages": {topic.model.__name__: _message(topic) for topic in TOPICS.values()},
            "schemas": dict(sorted(schemas.items())),
        },
    }


def settings_table() -> str:
    """Return every setting as a Markdown table."""
    lines = ["| Variable | Type | Default | Meaning |", "|---|---|---|---|"]
    for row in rows():
        default = "" if row.default in (None, "") else f"`{row.default}`"
        kind = row.type.replace("|", " or ")
        lines.append(f"| `{row.variable}` | {kind} | {default} | {row.description} |")
    return "\n".join(lines) + "\n"


def messages_page() -> str:
    """Return every topic and the fields of its messages as Markdown."""
    parts = ["# Topics and messages\n\nMade by `freshet schema`. Times named `*_at` are wall-clock seconds since 1970; "
             "`event_time` is the producer's clock. Unknown fields pass through.\n"]
    for topic in TOPICS.values():
        number = topic.partitions or "`FRESHET_KAFKA_PARTITIONS`"
        kept = "for ever" if topic.retention_ms < 0 else f"{topic.retention_ms / 86_400_000:g} days"
        schema = topic.model.model_json_schema(mode="validation")
        needed = schema.get("required", [])
        parts.append(f"\n## {topic.name}\n\n{topic.purpose} Written by {topic.writer}, read by {topic.readers}. "
                     f"Key: `{topic.key}`; partitions: {number}; cleanup: {topic.cleanup}; kept {kept}.\n\n"
                     "| Field | Type | Needed | Meaning |\n|---|---|---|---|")
        for name, spec in schema["properties"].items():
            mark = "yes" if name in needed else ""
            parts.append(f"| `{name}` | {_kind(spec)} | {mark} | {spec.get('description', '')} |")
    return "\n".join(parts) + "\n"


def _kind(spec: dict[str, Any]) -> str:
    """Return a JSON Schema's type in words for a table cell."""
    if "anyOf" in spec:
        return " or ".join(_kind(option) for option in spec["anyOf"])
    if "enum" in spec:
        return " or ".join(f"`{value}`" for value in spec["enum"])
    if "$ref" in spec:
        return str(spec["$ref"].rsplit("/", 1)[-1])
    if spec.get("type") == "array":
        return f"list of {_kind(spec.get('items', {}))}"
    return str(spec.get("type", "any"))


def documents() -> dict[str, bytes]:
    """Return every generated document: path under `docs/` → content."""
    out = {f"schemas/{topic.name}.json": _pretty(json_schema(topic)) for topic in TOPICS.values()}
    out["asyncapi.json"] = _pretty(asyncapi())
    out["messages.md"] = messages_page().encode()
    out["settings.md"] = ("# Settings\n\nMade by `freshet schema`. In `freshet.toml` a section is a table: "
                          "`FRESHET_KAFKA_BOOTSTRAP` is `bootstrap` in `[kafka]`.\n\n" + settings_table()).encode()
    return out


def write(folder: Path) -> list[Path]:
    """Write the documents under `folder` and return the paths that changed."""
    changed = []
    for name, content in documents().items():
        path = folder / name
        if not path.is_file() or path.read_bytes() != content:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            changed.append(path)
    return changed


def _message(topic: Topic) -> dict[str, Any]:
    name = topic.model.__name__
    key: dict[str, Any] = {"type": "string", "description": f"the value's {topic.key}"}
    return {
        "name": name,
        "title": name,
        "summary": topic.purpose,
        "contentType": "application/json",
        "payload": {"$ref": f"#/components/schemas/{name}"},
        "bindings": {"kafka": {"key": key, "bindingVersion": "0.5.0"}},
    }


def _component(model: type[BaseModel]) -> dict[str, Any]:
    schema = model.model_json_schema(mode="validation", ref_template="#/components/schemas/{model}")
    inner = schema.pop("$defs", {})
    return {**inner, model.__name__: schema}


def _pretty(value: dict[str, Any]) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
