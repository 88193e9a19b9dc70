"""Envelopes of common trackers: where they keep an event's fields.

A tracker's envelope is recognised by marks that nothing else has, or named by `events.envelope`. Sources: the specs of
Segment ("Track", "E-commerce events"), CloudEvents 1.0, Debezium ("change event value"), and of Snowplow's enriched
event as JSON.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from schemas.reading.fields import PLAIN, Paths, first
from schemas.settings import Envelope

CE_PREFIX = "ce_"  # headers of CloudEvents' binary mode on Kafka

_SEGMENT: Paths = {
    "user_id": ("userId", "anonymousId"),
    "item_id": ("properties.product_id", "properties.productId", "properties.item_id", "properties.sku",
                "properties.id"),
    "event_time": ("timestamp", "originalTimestamp", "sentAt", "receivedAt"),
    "event_type": ("event", "type"),
    "event_id": ("messageId",)}
_ECOMMERCE = "contexts_com_snowplowanalytics_snowplow_ecommerce_product_1"
_SNOWPLOW: Paths = {
    "user_id": ("user_id", "domain_userid", "network_userid"),
    "item_id": (f"{_ECOMMERCE}.0.id", "ti_sku", "se_property", "se_label"),
    "event_time": ("derived_tstamp", "true_tstamp", "dvce_created_tstamp", "collector_tstamp"),
    "event_type": (
        "unstruct_event_com_snowplowanalytics_snowplow_ecommerce_snowplow_ecommerce_action_1.type", "se_action",
        "event_name", "event"),
    "event_id": ("event_id",)}
PRODUCTS = ("product_id", "productId", "item_id", "sku", "id")  # names of the item within a list of products


@dataclass(frozen=True, slots=True)
class Opened:
    """One event of an envelope: an object, and where its fields are in it."""

    data: Mapping[str, Any]
    paths: Paths


def open_envelope(data: Mapping[str, Any], headers: Mapping[str, bytes], kind: Envelope) -> list[Opened]:
    """Return the events in an envelope; a plain event is returned as it is.

    Args:
        headers: the record's, for CloudEvents' binary mode.
        kind: the envelope, "none" for plain events, "auto" to recognise one. A plain event has a `user_id` and an
            `item_id`, so it is never taken for an envelope.

    Raises:
        ValueError: it is such an envelope and holds no event; the text says why.
    """
    if kind == "auto":
        kind = _recognise(data, headers)
    match kind:
        case "segment":
            return list(_segment(data))
        case "snowplow":
            return [Opened(data, _SNOWPLOW)]
        case "debezium":
            return [Opened(_debezium(data), PLAIN)]
        case "cloudevents":
            return [Opened(_cloud_event(data, headers), PLAIN)]
        case _:
            return [Opened(data, PLAIN)]


def _recognise(data: Mapping[str, Any], headers: Mapping[str, bytes]) -> Envelope:
    if ("specversion" in data and "source" in data) or f"{CE_PREFIX}specversion" in headers:
        return "cloudevents"
    if "user_id" in data and "item_id" in data:
        return "none"
    if "collector_tstamp" in data and "event_id" in data:
        return "snowplow"
    if "messageId" in data and ("userId" in data or "anonymousId" in data):
        return "segment"
    inner = data.get("payload", data)
    if isinstance(inner, Mapping) and "op" in inner and "after" in inner:
        return "debezium"
    return "none"


def _segment(data: Mapping[str, Any]) -> Iterator[Opened]:
    """Yield the call's event, or one for each product of a call that names several ("Order Completed")."""
    properties = data.get("properties")
    products = properties.get("products") if isinstance(properties, Mapping) else None
    if not isinstance(products, list) or first(data, _SEGMENT["item_id"]) is not None:
        yield Opened(data, _SEGMENT)
        return
    if not products:
        raise ValueError("the list of products is empty")
    message = data.get("messageId")
    for number, product in enumerate(products):
        item = first(product, PRODUCTS) if isinstance(product, Mapping) else None
        one: dict[str, Any] = {"properties": {"product_id": item}}
        if message is not None:
            one["messageId"] = f"{message}#{number}"
        yield Opened({**data, **one}, _SEGMENT)


def _debezium(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the row that was written; the change's own time stands in for a row without one."""
    change = data.get("payload", data)
    if not isinstance(change, Mapping) or "op" not in change:
        raise ValueError("no change event of Debezium: no op")
    if change["op"] == "d":
        raise ValueError("a deleted row is no event")
    row = change.get("after")
    if not isinstance(row, Mapping):
        raise ValueError("the change has no row in `after`")
    source = change.get("source")
    at = (source.get("ts_ms") if isinstance(source, Mapping) else None) or change.get("ts_ms")
    return {**row, "event_time": at} if first(row, PLAIN["event_time"]) is None and at is not None else row


def _cloud_event(data: Mapping[str, Any], headers: Mapping[str, bytes]) -> Mapping[str, Any]:
    """Return an event's data, with the envelope's time, type and id where the data has none of its own."""
    if "specversion" in data:
        context = data
        inner = data.get("data")
        if inner is None and isinstance(data.get("data_base64"), str):
            try:
                inner = orjson.loads(base64.b64decode(data["data_base64"], validate=True))
            except (binascii.Error, ValueError):
                raise ValueError("data_base64 holds no JSON") from None
    else:
        context = {name.removeprefix(CE_PREFIX): value.decode("utf-8", "replace")
                   for name, value in headers.items() if name.startswith(CE_PREFIX) and value is not None}
        inner = data
    if not isinstance(inner, Mapping):
        raise ValueError("the CloudEvent's data is no object")
    out = dict(inner)
    if first(out, PLAIN["event_time"]) is None and context.get("time"):
        out["event_time"] = context["time"]
    if first(out, PLAIN["event_type"]) is None and context.get("type"):
        out["event_type"] = context["type"]
    if first(out, PLAIN["event_id"]) is None and context.get("id"):
        out["event_id"] = f"{context.get('source', '')}/{context['id']}"  # unique together, says the spec
    return out
