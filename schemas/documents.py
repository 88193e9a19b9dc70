"""Generate documents from the table of topics: a JSON Schema per topic, an AsyncAPI 3 document, Markdown pages.

`freshet schema` writes them under `docs/`; a test checks that the files there are up to date.
"""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

import orjson
from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema

from schemas.settings import KafkaSettings, rows
from schemas.topics import TOPICS, Topic
from schemas.watch.table import ALL, METRICS, PROCESS

DRAFT = GenerateJsonSchema.schema_dialect
# Topics that other services write or read. All others connect Freshet's roles.
_PRODUCED_OUTSIDE = {"behaviour-events", "catalogue", "erasures"}
_CONSUMED_OUTSIDE = {"recommendations", "knowledge-updates", "dead-letters"}


def json_schema(topic: Topic) -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of a topic's values, as accepted from producers."""
    return {"$schema": DRAFT, "title": topic.model.__name__} | topic.model.model_json_schema(mode="validation")


def asyncapi() -> dict[str, Any]:
    """Return the AsyncAPI 3.0 document: channels, messages, and operations of outside services."""
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
        # From Freshet's point of view: it receives what others produce and sends what they consume.
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
            "description": "Freshet reads behaviour events and writes recommendations. Every decision in between is a "
                           "message on a topic. Values are JSON. A key is the named field as UTF-8, partitioned by "
                           "murmur2.",
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


def env_file() -> str:
    """Return every setting as a comment line of an environment file, as `env_file` of docker compose takes it.

    A secret has the variable that names its file.
    """
    parts = [
        "# Every setting of Freshet, with its default. Made by `freshet schema`.\n"
        "#   cp deploy/freshet.env .env\n"
        "# Take the mark off a line to set it: each line of `.env` reaches every role. docker-compose.yml sets\n"
        "# FRESHET_HOME and addresses within containers itself. Passwords belong in files (docs/security.md)."]
    for section, group in groupby(rows(), key=lambda row: row.section):
        parts.append(f"\n# {section or 'home'}")
        for row in group:
            default = "" if row.default in (None, "", {}) or row.secret else row.default
            meaning = row.description.partition("; never logged")[0] + (" (a file that holds it)" if row.secret else "")
            parts.append(f"# {meaning}\n#{row.file_variable or row.variable}={default}")
    return "\n".join(parts) + "\n"


def messages_page() -> str:
    """Return every topic and the fields of its messages as Markdown."""
    parts = ["# Topics and messages\n\nGenerated by `freshet schema`. Times named `*_at` are wall-clock seconds since "
             "1970; `event_time` comes from the producer's clock. Unknown fields pass through.\n"]
    for topic in TOPICS.values():
        number = topic.partitions or "`FRESHET_KAFKA_PARTITIONS`"
        retention = "unlimited" if topic.retention_ms < 0 else f"{topic.retention_ms / 86_400_000:g} days"
        schema = topic.model.model_json_schema(mode="validation")
        required = schema.get("required", [])
        parts.append(f"\n## {topic.name}\n\n{topic.purpose} Written by {topic.writer}, read by {topic.readers}. "
                     f"Key: `{topic.key}`; partitions: {number}; cleanup: {topic.cleanup}; retention: {retention}.\n\n"
                     "| Field | Type | Required | Meaning |\n|---|---|---|---|")
        for name, spec in schema["properties"].items():
            mark = "yes" if name in required else ""
            parts.append(f"| `{name}` | {_kind(spec)} | {mark} | {spec.get('description', '')} |")
    return "\n".join(parts) + "\n"


def metrics_page() -> str:
    """Return every metric as Markdown, by the roles that have it."""
    parts = ["# Metrics\n\nMade by `freshet schema` from `schemas/watch/table.py`. Every process answers `/metrics` on "
             "a port of its own, see [operations.md](operations.md#watch-it). No label holds a user, an item or text. "
             "Counters begin at 0 with the process. Times of stages are by one process's monotonic clock; times from "
             "an event on compare the broker's clock with the role's.\n"]
    for roles, group in groupby(METRICS, key=lambda metric: metric.roles):
        title = "Every role" if roles == ALL else " and ".join(roles) if len(roles) < 3 else ", ".join(roles)
        parts.append(f"\n## {title}\n\n| Metric | Kind | Labels | Meaning |\n|---|---|---|---|")
        for metric in group:
            labels = "<br>".join(f"`{label}`: {_label_values(metric.values[label])}" for label in metric.labels)
            bounds = f". Buckets: {', '.join(f'{bound:g}' for bound in metric.buckets)}" if metric.buckets else ""
            parts.append(f"| `{metric.name}` | {metric.kind} | {labels} | {metric.help}{bounds} |")
    parts.append("\n## Every process\n\nBy prometheus-client, on Linux.\n\n| Metric | Meaning |\n|---|---|")
    parts += [f"| `{name}` | {meaning} |" for name, meaning in PROCESS.items()]
    return "\n".join(parts) + "\n"


def _label_values(values: tuple[str, ...] | str) -> str:
    return values if isinstance(values, str) else ", ".join(values)


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
    out["metrics.md"] = metrics_page().encode()
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


def write_env_file(path: Path) -> bool:
    """Write `env_file` to a path; return whether that changed it."""
    text = env_file()
    if path.is_file() and path.read_text() == text:
        return False
    path.write_text(text)
    return True


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
