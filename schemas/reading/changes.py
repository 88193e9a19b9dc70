"""Rows of databases and lines of logs that came by a connector: Debezium, Kafka Connect, Maxwell, Canal, Airbyte, logs.

Sources: Debezium's "change event value" and "new record state extraction", Kafka Connect's JsonConverter, Maxwell's and
Canal's data formats, Airbyte's raw records, the events of Beats and Logstash, of Amazon EventBridge and SNS.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import pydantic_core

from schemas.reading.fields import PLAIN, first

Change = Literal["debezium", "maxwell", "canal", "airbyte", "logs", "aws"]
_WRITES = {"insert", "update", "bootstrap-insert"}


def connected(data: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the payload of Kafka Connect's JSON with its schema, None if it is none."""
    payload = data.get("payload")
    if data.keys() != {"schema", "payload"}:
        return None
    payload = object_in(payload)
    return payload if isinstance(payload, Mapping) else None


def recognise(data: Mapping[str, Any]) -> Change | None:
    """Return whose change it is, None if it is none."""
    inner = data.get("payload", data)
    if isinstance(inner, Mapping) and "op" in inner and ("after" in inner or "before" in inner):
        return "debezium"
    if "_airbyte_data" in data:
        return "airbyte"
    if "table" in data and "type" in data and ("data" in data or "isDdl" in data):
        return "canal" if "isDdl" in data or isinstance(data.get("data"), list) else "maxwell"
    if "@timestamp" in data and isinstance(data.get("message"), str) and data["message"].lstrip().startswith("{"):
        return "logs"
    if ("detail-type" in data and isinstance(data.get("detail"), Mapping)) or (
            data.get("Type") == "Notification" and isinstance(data.get("Message"), str)):
        return "aws"
    return None


def refuse_deleted(data: Mapping[str, Any]) -> None:
    """Raise ValueError for a row that Debezium flattened, and that was deleted."""
    if data.get("__deleted") in ("true", True) or data.get("__op") == "d":
        raise ValueError("a deleted row is no event")


def rows_of(data: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the rows that a change wrote; the change's own time stands in for a row without one.

    Raises:
        ValueError: no row was written; the text says why.
    """
    if "_airbyte_data" in data:
        return [_row(data["_airbyte_data"], first(data, ("_airbyte_emitted_at", "_airbyte_extracted_at")))]
    if "@timestamp" in data and "message" in data:
        return [_row(data["message"], data["@timestamp"])]
    if "detail-type" in data or "Message" in data:
        return [_row(data.get("detail", data.get("Message")), first(data, ("time", "Timestamp")))]
    if "table" in data and "type" in data:
        return _written(data)
    return [_debezium(data)]


def object_in(text: Any) -> Any:
    """Return the object that a text holds as JSON; the value itself if it is none."""
    if isinstance(text, str) and text.lstrip()[:1] in {"{", "["}:
        try:
            return pydantic_core.from_json(text)
        except ValueError:
            return text
    return text


def _row(row: Any, at: Any) -> Mapping[str, Any]:
    row = object_in(row)
    if not isinstance(row, Mapping):
        raise ValueError("the change holds no row")
    return {**row, "event_time": at} if first(row, PLAIN["event_time"]) is None and at is not None else row


def _written(data: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    kind = str(data["type"]).lower()
    if kind == "delete":
        raise ValueError("a deleted row is no event")
    if kind not in _WRITES:
        raise ValueError(f"a change of kind {kind[:40]!r} writes no row")
    rows = data.get("data")
    if isinstance(rows, list) and not rows:
        raise ValueError("the change holds no row")
    return [_row(row, first(data, ("es", "ts"))) for row in (rows if isinstance(rows, list) else [rows])]


def _debezium(data: Mapping[str, Any]) -> Mapping[str, Any]:
    change = data.get("payload", data)
    if not isinstance(change, Mapping) or "op" not in change:
        raise ValueError("no change event of Debezium: no op")
    if change["op"] in ("d", "t"):
        raise ValueError("a deleted row is no event")
    row = object_in(change.get("after"))  # MongoDB's is a text
    if not isinstance(row, Mapping):
        raise ValueError("the change has no row in `after`")
    source = change.get("source")
    return _row(row, (source.get("ts_ms") if isinstance(source, Mapping) else None) or change.get("ts_ms"))
