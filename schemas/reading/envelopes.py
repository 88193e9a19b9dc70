"""Envelopes of common trackers: where they keep an event's fields.

An envelope is recognised by marks that nothing else has, or named by `events.envelope`. Sources: the specs of Segment
("Track", "E-commerce events"; RudderStack's is the same), CloudEvents 1.0, Snowplow's enriched event, the exports of
Google Analytics 4, Amplitude, Mixpanel and PostHog. Changes of databases are in `changes`.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from schemas.reading import changes
from schemas.reading.fields import PLAIN, Paths, first
from schemas.settings import Envelope

CE_PREFIX = ("ce_", "ce-")  # headers of CloudEvents' binary mode on Kafka; bridges from HTTP keep its hyphen
PRODUCTS = ("product_id", "productId", "item_id", "itemId", "sku", "id")  # names of the item within a list of products

_ITEMS = tuple(f"properties.{name}" for name in PRODUCTS)
_SEGMENT: Paths = {
    "user_id": ("userId", "anonymousId"), "item_id": _ITEMS,
    "event_time": ("timestamp", "originalTimestamp", "sentAt", "receivedAt"),
    "event_type": ("event", "type"), "event_id": ("messageId",)}
_PROPERTIES: Paths = {  # Mixpanel and PostHog
    "user_id": ("properties.$user_id", "distinct_id", "properties.distinct_id"), "item_id": _ITEMS,
    "event_time": ("properties.time", "timestamp", "properties.timestamp", "sent_at"),
    "event_type": ("event",), "event_id": ("uuid", "properties.$insert_id")}
_AMPLITUDE: Paths = {
    "user_id": ("user_id", "device_id", "amplitude_id"),
    "item_id": tuple(f"event_properties.{name}" for name in PRODUCTS),
    "event_time": ("event_time", "time", "client_event_time", "server_received_time"),
    "event_type": ("event_type",), "event_id": ("$insert_id", "insert_id", "uuid")}
_GA4: Paths = {
    "user_id": ("user_id", "user_pseudo_id", "client_id", "app_instance_id"),
    "item_id": tuple(f"item.{name}" for name in PRODUCTS),
    "event_time": ("event_timestamp", "timestamp_micros", "event_date"),
    "event_type": ("event_name", "name"), "event_id": ("event_id",)}
_MPARTICLE: Paths = {
    "user_id": ("user_identities.customer_id", "user_identities.customerid", "mpid"),
    "item_id": ("item.id", "item.sku", *(f"data.custom_attributes.{name}" for name in PRODUCTS)),
    "event_time": ("data.timestamp_unixtime_ms", "timestamp_unixtime_ms"),
    "event_type": ("data.product_action.action", "data.event_name", "event_type"), "event_id": ("data.event_id",)}
_ECOMMERCE = "contexts_com_snowplowanalytics_snowplow_ecommerce_product_1"
_ACTION = "unstruct_event_com_snowplowanalytics_snowplow_ecommerce_snowplow_ecommerce_action_1"
_SNOWPLOW: Paths = {
    "user_id": ("user_id", "domain_userid", "network_userid"),
    "item_id": (f"{_ECOMMERCE}.0.id", "ti_sku", "se_property", "se_label"),
    "event_time": ("derived_tstamp", "true_tstamp", "dvce_created_tstamp", "collector_tstamp"),
    "event_type": (f"{_ACTION}.type", "se_action", "event_name", "event"), "event_id": ("event_id",)}
# Columns of Snowplow's enriched event as its pipeline writes it, 131 values separated by tabs.
_SNOWPLOW_COLUMNS = {
    3: "collector_tstamp", 4: "dvce_created_tstamp", 5: "event", 6: "event_id", 12: "user_id", 15: "domain_userid",
    17: "network_userid", 54: "se_action", 55: "se_label", 56: "se_property", 68: "ti_sku", 124: "derived_tstamp",
    126: "event_name", 130: "true_tstamp"}
_SNOWPLOW_WIDTH, _CONTEXTS, _UNSTRUCTURED = 131, (52, 122), 58
_LISTS = ("events", "batch", "actionDetails")  # several events in one object: Segment's batch, Matomo's visit, OTTO
_CALLS = ("track", "page", "screen", "identify", "group", "alias")


@dataclass(frozen=True, slots=True)
class Opened:
    """One event of an envelope: an object, and where its fields are in it; `why` there is none, if so."""

    data: Mapping[str, Any]
    paths: Paths
    why: str = ""


def open_envelope(data: Mapping[str, Any], headers: Mapping[str, bytes], kind: Envelope) -> list[Opened]:
    """Return the events in an envelope; a plain event is returned as it is.

    Args:
        headers: the record's, for CloudEvents' binary mode.
        kind: the envelope, "none" for plain events, "auto" to recognise one. A plain event has a `user_id` and an
            `item_id`, so it is never taken for an envelope.

    Raises:
        ValueError: it is such an envelope and holds no event; the text says why.
    """
    return _open(data, headers, kind, 0)


def snowplow_line(text: str) -> dict[str, Any] | None:
    """Return an enriched event as its pipeline writes it, as an object; None for any other text."""
    values = text.rstrip("\r\n").split("\t")
    if len(values) < _SNOWPLOW_WIDTH or len(values[6]) != 36:  # a UUID
        return None
    out: dict[str, Any] = {name: values[at] for at, name in _SNOWPLOW_COLUMNS.items() if values[at]}
    for at in _CONTEXTS:
        for context in _described(values[at]):
            if name := _iglu(context):
                out.setdefault(f"contexts_{name}", []).append(context.get("data"))
    for event in _described(values[_UNSTRUCTURED]):
        if name := _iglu(event):
            out[f"unstruct_event_{name}"] = event.get("data")
    return out


def _open(data: Mapping[str, Any], headers: Mapping[str, bytes], kind: Envelope, depth: int) -> list[Opened]:
    if kind == "auto":
        changes.refuse_deleted(data)
        kind = _recognise(data, headers)
        inner = changes.connected(data) if kind == "none" else None
        if inner is not None and not depth:
            return _open(inner, headers, "auto", 1)
        if kind == "none" and depth < 2 and (several := _several(data)):
            return [opened for one in several for opened in _one_of_several(one, headers, depth + 1)]
    return list(_OPEN[kind](data, headers)) if kind in _OPEN else [Opened(data, PLAIN)]


def _one_of_several(data: Mapping[str, Any], headers: Mapping[str, bytes], depth: int) -> list[Opened]:
    try:
        return _open(data, headers, "auto", depth)
    except ValueError as error:
        return [Opened(data, PLAIN, str(error))]


def _several(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the events of an object with a list of them; what is said once beside the list holds for each."""
    for name in _LISTS:
        inner = data.get(name)
        if isinstance(inner, list) and inner and all(isinstance(one, Mapping) for one in inner):
            shared = {key: value for key, value in data.items() if key != name}
            return [{**shared, **one} for one in inner]
    return []


def _recognise(data: Mapping[str, Any], headers: Mapping[str, bytes]) -> Envelope:  # noqa: PLR0911
    if ("specversion" in data and "source" in data) or any(name in headers for name in (
            "ce_specversion", "ce-specversion")):
        return "cloudevents"
    if "user_id" in data and "item_id" in data:
        return "none"
    if "collector_tstamp" in data and "event_id" in data:
        return "snowplow"
    if ("userId" in data or "anonymousId" in data) and (
            "messageId" in data or ("properties" in data and data.get("type") in _CALLS)):
        return "segment"
    if (change := changes.recognise(data)) is not None:
        return change
    if isinstance(data.get("event_properties"), Mapping) and "event_type" in data:
        return "amplitude"
    if ("event_name" in data and "event_timestamp" in data) or (
            "name" in data and isinstance(data.get("params"), Mapping)):
        return "ga4"
    properties = data.get("properties")
    if "event" in data and isinstance(properties, Mapping) and ("distinct_id" in data or "distinct_id" in properties):
        return "mixpanel"
    inner = data.get("data")
    if "event_type" in data and isinstance(inner, Mapping) and "timestamp_unixtime_ms" in inner:
        return "mparticle"
    return "none"


def _each(
    data: Mapping[str, Any], paths: Paths, products: Any, put: Callable[[Any], dict[str, Any]], message: str,
) -> Iterator[Opened]:
    """Yield the call's event, or one for each product of a call that names several ("Order Completed")."""
    if not isinstance(products, list) or first(data, paths["item_id"]) is not None:
        yield Opened(data, paths)
        return
    if not products:
        raise ValueError("the list of products is empty")
    at = first(data, (message,))
    for number, product in enumerate(products):
        one = put(product if isinstance(product, Mapping) else {})
        yield Opened({**data, **one, **({} if at is None else {message: f"{at}#{number}"})}, paths)


def _segment(data: Mapping[str, Any], _: Mapping[str, bytes]) -> Iterator[Opened]:
    properties = data.get("properties")
    products = properties.get("products") if isinstance(properties, Mapping) else None
    return _each(data, _SEGMENT, products, lambda product: {"properties": {"product_id": first(product, PRODUCTS)}},
                 "messageId")


def _snowplow(data: Mapping[str, Any], _: Mapping[str, bytes]) -> Iterator[Opened]:
    products = data.get(_ECOMMERCE)
    if not isinstance(products, list) or len(products) < 2:
        return iter([Opened(data, _SNOWPLOW)])
    without = {name: value for name, value in data.items() if name not in (_ECOMMERCE, "ti_sku")}
    return _each({name: value for name, value in without.items() if name not in ("se_property", "se_label")},
                 _SNOWPLOW, products, lambda product: {_ECOMMERCE: [product]}, "event_id")


def _ga4(data: Mapping[str, Any], _: Mapping[str, bytes]) -> Iterator[Opened]:
    params = data.get("params")
    products = data.get("items") or (params.get("items") if isinstance(params, Mapping) else None)
    if not products:  # an event without products names its item in a parameter
        found = params if isinstance(params, Mapping) else _parameters(data.get("event_params"))
        return iter([Opened({**data, "item": found}, _GA4)])
    return _each(data, _GA4, products, lambda product: {"item": product}, "event_id")


def _parameters(params: Any) -> dict[str, Any]:
    """Return event_params of the export, [{key, value: {string_value, int_value, …}}], as an object."""
    out = {}
    for one in params if isinstance(params, list) else ():
        value = one.get("value") if isinstance(one, Mapping) else None
        if isinstance(value, Mapping) and isinstance(one.get("key"), str):
            out[one["key"]] = next((inner for inner in value.values() if inner is not None), None)
    return out


def _mparticle(data: Mapping[str, Any], _: Mapping[str, bytes]) -> Iterator[Opened]:
    return _each(data, _MPARTICLE, first(data, ("data.product_action.products",)), lambda product: {"item": product},
                 "data.event_id")


def _cloud_event(data: Mapping[str, Any], headers: Mapping[str, bytes]) -> Iterator[Opened]:
    """Yield an event's data, with the envelope's time, type and id where the data has none of its own."""
    if "specversion" in data:
        context = data
        inner = data.get("data")
        if inner is None and isinstance(data.get("data_base64"), str):
            try:
                inner = orjson.loads(base64.b64decode(data["data_base64"], validate=True))
            except (binascii.Error, ValueError):
                raise ValueError("data_base64 holds no JSON") from None
        elif isinstance(inner, str):
            inner = changes.object_in(inner)
    else:
        context = {name[3:]: value.decode("utf-8", "replace")
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
    yield Opened(out, PLAIN)


def _described(text: str) -> list[Mapping[str, Any]]:
    """Return Snowplow's self-describing JSON within self-describing JSON: one event, or a list of contexts."""
    outer = changes.object_in(text)
    inner = outer.get("data") if isinstance(outer, Mapping) else None
    return [one for one in (inner if isinstance(inner, list) else [inner]) if isinstance(one, Mapping)]


def _iglu(described: Mapping[str, Any]) -> str:
    """Return `com_vendor_name_1` for iglu:com.vendor/name/jsonschema/1-0-0, as Snowplow's own tools name it."""
    parts = str(described.get("schema", "")).removeprefix("iglu:").split("/")
    return "_".join((parts[0].replace(".", "_"), parts[1], parts[3].split("-")[0])) if len(parts) == 4 else ""


def _changed(data: Mapping[str, Any], _: Mapping[str, bytes]) -> Iterator[Opened]:
    rows = changes.rows_of(data)
    return (Opened(row, PLAIN) for row in rows)


def _at(paths: Paths) -> Callable[[Mapping[str, Any], Mapping[str, bytes]], Iterator[Opened]]:
    return lambda data, headers: iter([Opened(data, paths)])


_OPEN: Mapping[Envelope, Callable[[Mapping[str, Any], Mapping[str, bytes]], Iterator[Opened]]] = {
    "segment": _segment, "snowplow": _snowplow, "cloudevents": _cloud_event, "ga4": _ga4, "mparticle": _mparticle,
    "amplitude": _at(_AMPLITUDE), "mixpanel": _at(_PROPERTIES), "debezium": _changed, "maxwell": _changed,
    "canal": _changed, "airbyte": _changed, "logs": _changed, "aws": _changed}
