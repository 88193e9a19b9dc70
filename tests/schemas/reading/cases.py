"""What the reader takes and what it refuses: the table that the tests check and docs/events.md shows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import orjson
from pydantic import TypeAdapter

from schemas.reading.reader import EventReader
from schemas.settings import EventSettings

NOON = 1706702400.0  # 2024-01-31T12:00:00Z


@dataclass(frozen=True)
class Case:
    """A record and what is read of it: (user, item, time, type) of each event, or a part of the reason why not."""

    value: bytes
    wanted: list[tuple[str, str, float, str]] | str
    note: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    headers: tuple[tuple[str, bytes], ...] = ()
    event_id: str = ""  # of the first event, where the record says it


def reader(**settings: object) -> EventReader:
    return EventReader(TypeAdapter(EventSettings).validate_python(settings))


def plain(**fields: Any) -> bytes:
    return orjson.dumps({"user_id": "u", "item_id": "i", "event_time": NOON} | fields)


def one(
    value: bytes, user: str = "u", item: str = "i", at: float = NOON, kind: str = "interaction", **more: Any,
) -> Case:
    return Case(value, [(user, item, at, kind)], **more)


def no(value: bytes | None, reason: str, note: str = "", **more: Any) -> Case:
    return Case(value or b"", reason, note, **more)


DAY = NOON - 43200

IDS = [
    one(plain()),
    one(plain(user_id=730114522, item_id=50), "730114522", "50", note="a number and its text are one id"),
    one(plain(user_id=7.0), "7"),
    one(plain(user_id=-3), "-3"),
    one(plain(user_id=0, item_id=0), "0", "0"),
    one(b'{"user_id":18446744073709551617,"item_id":"i","event_time":1706702400}', "18446744073709551617",
        note="integers of any size"),
    one(plain(user_id="007"), "007", note="text stays as it is"),
    one(plain(user_id=" u "), " u "),
    one(plain(user_id="Zoë/Ł 北京 🎬"), "Zoë/Ł 北京 🎬"),
    one(plain(user_id="-rf"), "-rf"),
    one(plain(user_id="x" * 256), "x" * 256),
    one(plain(user_id="🎬" * 256), "🎬" * 256),
    one(b'{"user_id":"\\u0041","item_id":"i","event_time":1706702400}', "A"),
    one(plain(user_id="../../etc/passwd", item_id="'; DROP TABLE users"), "../../etc/passwd", "'; DROP TABLE users"),
    one(plain(user_id="a\x00b"), "a\x00b"),
    no(plain(user_id="x" * 257), "user_id: longer than 256"),
    no(plain(user_id=""), "user_id: null or empty"),
    no(plain(user_id=None), "user_id: null or empty"),
    no(plain(item_id=None), "item_id: null or empty"),
    no(plain(user_id=True), "user_id: a boolean"),
    no(plain(user_id=7.5), "user_id: a number with a fraction"),
    no(plain(user_id=1e300), "user_id: a number with a fraction or more than 53 bits"),
    no(plain(item_id=["i"]), "item_id: neither"),
    no(plain(item_id={"id": 1}), "item_id: neither"),
    no(b'{"user_id":' + b"9" * 300 + b',"item_id":"i","event_time":1706702400}', "user_id: "),
    no(b'{"item_id":"i","event_time":1706702400}', "user_id: missing; the event has item_id, event_time"),
    no(b'{"visitorid":1,"itemid":2,"timestamp":1706702400}', "FRESHET_EVENTS_FIELDS=user_id=NAME",
       "the reason says how to map another name"),
]
TIMES = [
    one(plain(event_time=1706702400)),
    one(plain(event_time=1706702400.25), at=NOON + 0.25),
    one(plain(event_time=1706702400000), note="milliseconds"),
    one(plain(event_time=1706702400250), at=NOON + 0.25),
    one(plain(event_time=1706702400000000), note="microseconds"),
    one(plain(event_time=1706702400000000000), note="nanoseconds"),
    one(plain(event_time=1.7067024e18)),
    one(plain(event_time="1706702400")),
    one(plain(event_time="1706702400.25"), at=NOON + 0.25),
    one(plain(event_time="1706702400000")),
    one(plain(event_time=" 1706702400 ")),
    one(plain(event_time="1.7067024E9")),
    one(plain(event_time="1.7067024E12")),
    one(plain(event_time="2024-01-31T12:00:00Z")),
    one(plain(event_time="2024-01-31T12:00:00z")),
    one(plain(event_time="2024-01-31t12:00:00z")),
    one(plain(event_time="2024-01-31T12:00:00"), note="UTC where no zone is named"),
    one(plain(event_time="2024-01-31 12:00:00")),
    one(plain(event_time="2024-01-31 12:00:00 ")),
    one(plain(event_time="2024-01-31 12:00:00 UTC")),
    one(plain(event_time="2024-01-31 12:00:00 utc")),
    one(plain(event_time="2024-01-31 12:00:00 GMT")),
    one(plain(event_time="2024-01-31 12:00:00UTC")),
    one(plain(event_time="2024-01-31 12:00:00Z")),
    one(plain(event_time="2024-01-31T13:00:00+01:00")),
    one(plain(event_time="2024-01-31T13:00:00+0100")),
    one(plain(event_time="2024-01-31T13:00:00+01")),
    one(plain(event_time="2024-01-31 13:00:00 +0100")),
    one(plain(event_time="2024-01-31 13:00:00 +01:00")),
    one(plain(event_time="2024-01-31 12:00:00.000+00"), note="as Postgres writes it"),
    one(plain(event_time="2024-01-31 12:00:00.123456 UTC"), at=NOON + 0.123456, note="as BigQuery writes it"),
    one(plain(event_time="2024-01-31T04:00:00-08:00")),
    one(plain(event_time="2024-01-31T12:00:00.5Z"), at=NOON + 0.5),
    one(plain(event_time="2024-01-31T12:00:00.123Z"), at=NOON + 0.123),
    one(plain(event_time="2024-01-31T12:00:00,123Z"), at=NOON + 0.123),
    one(plain(event_time="2024-01-31T12:00:00.123456789Z"), at=NOON + 0.123456),
    one(plain(event_time="2024-01-31T12:00Z")),
    one(plain(event_time="2024-01-31T12Z")),
    one(plain(event_time="20240131T120000Z")),
    one(plain(event_time="2024-W05-3T12:00:00Z")),
    one(plain(event_time="2024-01-31T13:00:00+01:00[Europe/Berlin]"), note="as Java writes it"),
    one(plain(event_time="2024-01-31T13:00:00[Europe/Berlin]")),
    one(plain(event_time="2024-01-31 13:00:00 Europe/Berlin")),
    one(plain(event_time="Wed, 31 Jan 2024 12:00:00 GMT"), note="RFC 2822"),
    one(plain(event_time="Wed, 31 Jan 2024 13:00:00 +0100")),
    one(plain(event_time="2024-01-31"), at=DAY, note="a date is its first moment, UTC"),
    one(plain(event_time="20240131"), at=DAY),
    one(plain(event_time=20240131), at=DAY),
    one(plain(event_time="1998-04-05T00:00:00Z"), at=891734400.0),
    one(plain(event_time=881250949), at=881250949.0, note="MovieLens' times"),
    no(plain(event_time=None), "event_time: null or empty"),
    no(plain(event_time=""), "event_time: null or empty"),
    no(plain(event_time=" "), "event_time: empty"),
    no(plain(event_time="yesterday"), "neither a number nor ISO 8601"),
    no(plain(event_time="31.01.2024"), "neither a number nor ISO 8601"),
    no(plain(event_time="01/31/2024 12:00"), "neither a number nor ISO 8601", "month or day first? nobody can know"),
    no(plain(event_time="2024-02-30"), "neither a number nor ISO 8601"),
    no(plain(event_time="2024-01-31 12:00:00 CET"), "time zone is unknown"),
    no(plain(event_time="2024-01-31 12:00:00 Mars/Base"), "time zone is unknown"),
    no(plain(event_time="x" * 70), "70 characters are no time"),
    no(plain(event_time=True), "no time"),
    no(plain(event_time=[NOON]), "neither a number nor a text"),
    no(plain(event_time=-1), "no time between"),
    no(plain(event_time=0), "no time between"),
    no(plain(event_time=5), "FRESHET_EVENTS_EARLIEST=1970-01-01"),
    no(plain(event_time=19753), "in days it would be 2024-01-31"),
    no(plain(event_time=474084), "in hours it would be 2024-01-31"),
    no(plain(event_time=28445040), "in minutes it would be 2024-01-31"),
    no(plain(event_time="28445040"), "in minutes it would be 2024-01-31"),
    no(plain(event_time=20240131120000), "send 2024-01-31T12:00:00"),
    no(plain(event_time=202401311200), "send 2024-01-31T12:00:00"),
    no(plain(event_time="1969-12-31"), "1969-12-31 is not between"),
    no(plain(event_time="2200-01-01"), "2200-01-01 is not between"),
    no(plain(event_time=4102444800), "no time between"),
    no(plain(event_time=10**18 * 9), "no time between"),
    no(b'{"user_id":"u","item_id":"i","event_time":' + b"9" * 400 + b"}", "event_time"),
    no(b'{"user_id":"u","item_id":"i","event_time":NaN}', "not a finite number"),
    no(b'{"user_id":"u","item_id":"i","event_time":1e999}', "event_time"),
    one(plain(event_time=5), at=5.0, settings={"earliest": "1970-01-01"}, note="times that do not count from 1970"),
]
OPTIONAL = [
    one(plain(event_type="click"), kind="click"),
    one(plain(event_type=None), note="null and empty are as good as absent"),
    one(plain(event_type="")),
    one(plain(event_type=5), kind="5", note="a number as text"),
    one(plain(event_type=True), kind="true"),
    one(plain(event_type="x" * 80), kind="x" * 64, note="cut to 64 characters"),
    no(plain(event_type=["view"]), "event_type: neither"),
    one(plain(event_id="e-1"), event_id="e-1"),
    one(plain(event_id=9007199254740993), event_id="9007199254740993"),
    one(plain(event_id=None)),
    one(plain(event_id="")),
    no(plain(event_id={"id": 1}), "event_id: neither"),
    one(plain(schema_version=None)),
    one(plain(schema_version="1")),
    one(plain(price=3, nested={"a": [1]}), note="other fields are ignored"),
    one(b'{"user_id":"u","item_id":"i","event_time":1706702400,"category_code":NaN}', note="even NaN in them"),
    one(b'{"user_id":"u","item_id":"i","event_time":1,"event_time":1706702400}', note="the last of two counts"),
]
NAMES = [
    one(b'{"user_id":"u","item_id":"i","timestamp":1706702400}'),
    one(b'{"user_id":"u","item_id":"i","ts":1706702400}'),
    one(b'{"user_id":"u","item_id":"i","time":1706702400}'),
    one(b'{"user_id":"u","item_id":"i","timestamp":5,"event_time":1706702400}', note="event_time before the others"),
    one(b'{"user_id":"u","item_id":"i","timestamp":1706702400,"event_time":null}'),
    one(b'{"visitorid":257597,"itemid":355908,"timestamp":1706702400000,"event":"view"}', "257597", "355908",
        kind="view", settings={"fields": {"user_id": "visitorid", "item_id": "itemid", "event_type": "event"}}),
    one(b'{"user":{"id":"u"},"product":{"id":"i"},"at":"2024-01-31T12:00:00Z"}',
        settings={"fields": {"user_id": "user.id", "item_id": "product.id", "event_time": "at"}},
        note="a dot goes into an object"),
    one(b'{"user.id":"u","item_id":"i","ts":1706702400}', settings={"fields": {"user_id": "user.id"}}),
    one(b'{"user_id":"u","items":[{"sku":"i"}],"ts":1706702400}', settings={"fields": {"item_id": "items.0.sku"}}),
    no(b'{"user_id":"u","items":[],"ts":1706702400}', "item_id (items.0.sku): missing",
       settings={"fields": {"item_id": "items.0.sku"}}),
    no(b'{"user_id":"u","items":"i","ts":1706702400}', "item_id (items.0.sku): missing",
       settings={"fields": {"item_id": "items.0.sku"}}),
]
_SEGMENT = {"type": "track", "event": "Product Viewed", "userId": "u", "messageId": "m-1",
            "timestamp": "2024-01-31T12:00:00.000Z", "properties": {"product_id": "i", "price": 9.5}}
_ORDER = _SEGMENT | {"event": "Order Completed", "properties": {"order_id": "o", "products": [
    {"product_id": "i"}, {"sku": 7}]}}
_CLOUD = {"specversion": "1.0", "source": "/shop", "id": "1", "type": "com.shop.view", "time": "2024-01-31T12:00:00Z"}
_CHANGE = {"op": "c", "before": None, "after": {"user_id": "u", "item_id": "i"}, "ts_ms": 1706702400000,
           "source": {"ts_ms": 1706702399000}}
_SNOWPLOW = {"event_id": "s-1", "user_id": "u", "event_name": "snowplow_ecommerce_action",
             "collector_tstamp": "2024-01-31T12:00:05Z", "derived_tstamp": "2024-01-31T12:00:00Z",
             "contexts_com_snowplowanalytics_snowplow_ecommerce_product_1": [{"id": "i"}],
             "unstruct_event_com_snowplowanalytics_snowplow_ecommerce_snowplow_ecommerce_action_1": {
                 "type": "product_view"}}
ENVELOPES = [
    one(orjson.dumps(_SEGMENT), kind="Product Viewed", event_id="m-1", note="Segment"),
    one(orjson.dumps({k: v for k, v in _SEGMENT.items() if k != "userId"} | {"anonymousId": "a"}), "a",
        kind="Product Viewed"),
    Case(orjson.dumps(_ORDER), [("u", "i", NOON, "Order Completed"), ("u", "7", NOON, "Order Completed")],
         "an order is one event for each product", event_id="m-1#0"),
    no(orjson.dumps(_ORDER | {"properties": {"products": []}}), "list of products is empty"),
    no(orjson.dumps(_ORDER | {"properties": {"products": ["x"]}}), "item_id"),
    one(orjson.dumps(_CLOUD | {"data": {"user_id": "u", "item_id": "i"}}), kind="com.shop.view", event_id="/shop/1",
        note="CloudEvents, structured"),
    one(orjson.dumps(_CLOUD | {"data": {"user_id": "u", "item_id": "i", "event_type": "buy", "event_id": "e"}}),
        kind="buy", event_id="e", note="the data's own fields come first"),
    one(orjson.dumps(_CLOUD | {"data_base64": "eyJ1c2VyX2lkIjoidSIsIml0ZW1faWQiOiJpIn0="}), kind="com.shop.view"),
    no(orjson.dumps(_CLOUD | {"data_base64": "%%"}), "data_base64"),
    no(orjson.dumps(_CLOUD | {"data": "text"}), "data is no object"),
    one(b'{"user_id":"u","item_id":"i"}', kind="view", event_id="/shop/1", note="CloudEvents, binary: in the headers",
        headers=(("ce_specversion", b"1.0"), ("ce_source", b"/shop"), ("ce_id", b"1"), ("ce_type", b"view"),
                 ("ce_time", b"2024-01-31T12:00:00Z"))),
    one(orjson.dumps(_CHANGE), at=NOON - 1, note="Debezium: the time of the change, where the row has none"),
    one(orjson.dumps({"schema": {}, "payload": _CHANGE}), at=NOON - 1),
    one(orjson.dumps(_CHANGE | {"op": "u", "after": {"user_id": "u", "item_id": "i", "ts": 1706702400}})),
    no(orjson.dumps(_CHANGE | {"op": "d", "after": None}), "a deleted row is no event"),
    no(orjson.dumps(_CHANGE | {"after": None}), "no row"),
    one(orjson.dumps(_SNOWPLOW), kind="product_view", event_id="s-1", note="Snowplow"),
    one(orjson.dumps(_SEGMENT | {"specversion": "x"}), kind="Product Viewed", settings={"envelope": "segment"}),
    no(orjson.dumps(_SEGMENT), "user_id: missing", settings={"envelope": "none"}),
    no(plain(), "no op", settings={"envelope": "debezium"}),
]
RECORDS = [
    Case(b"[" + plain() + b"," + plain(item_id="j") + b"]", [("u", "i", NOON, "interaction"),
                                                            ("u", "j", NOON, "interaction")], "an array of events"),
    no(b"[]", "an empty array"),
    no(b"[1]", "element 0: not an object"),
    no(b"[[" + plain() + b"]]", "element 0: not an object"),
    one(b"\xef\xbb\xbf" + plain(), note="a byte order mark"),
    one(b"\x00\x00\x00\x00\x07" + plain(), note="Confluent's framing before JSON"),
    no(b"\x00\x00\x00\x00\x07\x02u", "schema registry"),
    one(b" \n" + plain() + b"\r\n"),
    no(b"", "empty value"),
    no(b" ", "Invalid JSON"),
    no(b"\xff\xfe", "Invalid JSON"),
    no(b"{", "Invalid JSON"),
    no(plain() + b"}", "Invalid JSON"),
    no(plain() + b"\n" + plain(), "Invalid JSON"),
    no(b"null", "not an object"),
    no(b'"text"', "not an object"),
    no(b"7", "not an object"),
    no(b"{}", "the event has nothing"),
    no(b"user_id=u&item_id=i", "Invalid JSON"),
    no(b"[" * 5000 + b"]" * 5000, "Invalid JSON"),
    no(b"\x80\x04\x95\x10\x00\x00\x00", "Invalid JSON", "a pickle is never opened"),
    no(plain().decode().encode("utf-16"), "Invalid JSON"),
    no('{"user_id":"Zoë","item_id":"i","event_time":1706702400}'.encode("latin-1"), "Invalid JSON"),
]
GROUPS = {"Ids": IDS, "Times": TIMES, "Optional fields": OPTIONAL, "Names": NAMES, "Envelopes": ENVELOPES,
          "Records": RECORDS}
