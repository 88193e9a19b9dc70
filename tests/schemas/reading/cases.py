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
    no(b'{"who":1,"what":2,"timestamp":1706702400}', "FRESHET_EVENTS_FIELDS=user_id=NAME",
       "the reason says how to map another name"),
    *[no(plain(user_id=text), "is what a program writes for no value") for text in (
        "null", "NULL", "undefined", "None", "nan", "NaN")],
    one(plain(user_id="nULL", item_id="None of us"), "nULL", "None of us"),
    one(plain(user_id={"$oid": "65ba2f"}, item_id={"$numberLong": "50"}), "65ba2f", "50", note="MongoDB's JSON"),
    one(plain(user_id={"string": "u"}, item_id={"long": 5}, event_type=None), "u", "5", note="Avro's JSON"),
    one(plain(user_id={"scale": 0, "value": "BQ=="}), "5", note="Debezium's decimal, as of Oracle"),
    one(plain(user_id={"scale": 2, "value": "AfQ="}), "5"),
    *[no(plain(user_id={"scale": scale, "value": value}), "user_id: ") for scale, value in (
        (1, "BQ=="), (0, "%"), (0, "f" * 80), (-1, "BQ=="), (10**9, "BQ=="), (None, "BQ=="), (0, 7))],
    no(plain(user_id={"id": 1, "name": "Zoe"}), "user_id: neither"),
]
TIMES = [
    *[one(plain(event_time=form), note=note) for form, note in (
        ([2024, 1, 31, 12, 0], "as Java's Jackson writes it"), ([2024, 1, 31, 12, 0, 0, 0], ""),
        ({"epochSecond": 1706702400, "nano": 0}, ""), ({"seconds": 1706702400, "nanos": 0}, "Protobuf"),
        ({"_seconds": 1706702400, "_nanoseconds": 0}, "Firestore"), ({"$date": "2024-01-31T12:00:00Z"}, "MongoDB"),
        ({"$date": {"$numberLong": "1706702400000"}}, ""), ("/Date(1706702400000+0100)/", ".NET"),
        ("Wed Jan 31 12:00:00 2024", "C"), ("Wed Jan 31 12:00:00 UTC 2024", "Java"),
        ("Wed Jan 31 13:00:00 +0100 2024", ""),
        ("Wed Jan 31 2024 13:00:00 GMT+0100 (Central European Standard Time)", "JavaScript"),
        ("31/Jan/2024:13:00:00 +0100", "logs of web servers"), ("2024/01/31 12:00:00", ""),
        ("2024-1-31 12:00:00", ""), ("2024-01-31 12:00:00 PM", ""), ("31-Jan-2024 12:00:00", "Oracle"),
        ("2024-01-31 12:00:00 +0000 UTC", "Go"))],
    *[one(plain(event_time=form), at=DAY) for form in ("2024/01/31", "2024.01.31", "Jan 31, 2024", "31 January 2024",
                                                      [2024, 1, 31])],
    *[no(plain(event_time=form), "event_time: ") for form in (
        [2024, 13, 31], [2024, 1], [2024, 1, "31"], {"seconds": "x"}, {"seconds": [1]}, {"$date": None}, {"a": 1},
        "/Date(x)/", "2024-01-31 25:00:00 PM", [2**62, 1, 1], {"seconds": 1e308}, "undefined")],
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
    no(plain(event_time="x" * 120), "120 characters are no time"),
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
    one(b'{"userId":"u","itemId":"i","timestamp":1706702400000}', note="however they are written"),
    one(b'{"UserID":"u","Product-ID":7,"eventTime":"2024-01-31T12:00:00Z","eventType":"click"}', item="7",
        kind="click"),
    one(b'{"visitorid":257597,"itemid":355908,"timestamp":1706702400000,"event":"view","transactionid":null}', "257597",
        "355908", kind="view", note="the names of public data sets, as in files"),
    one(b'{"reviewerID":"A1","asin":"B0","unixReviewTime":1706702400,"overall":5.0}', "A1", "B0"),
    one(b'{"@timestamp":"2024-01-31T12:00:00Z","user_id":"u","item_id":"i"}'),
    one(b'{"user_id":"u","userid":"v","item_id":"i","ts":1706702400}', note="ours come first"),
    one(b'{"user":{"id":"x"},"uid":"u","item_id":"i","ts":1706702400,"type":["a"]}', note="never a list or an object"),
    no(b'{"user":{"id":"x"},"item_id":"i","ts":1706702400}', "user_id: missing"),
    no(b'{"user_id":null,"session_id":"s","customer_id":"c","item_id":"i","ts":1706702400}', "user_id: null or empty",
       "a user who is not known is not taken for a session's"),
    no(b'{"userId":"","sessionId":"s","item_id":"i","ts":1706702400}', "user_id: missing"),
    one(b'{"sessionId":"s","item_id":"i","ts":1706702400}', "s", note="sessions, where there are no users"),
    one(b'{"userId":null,"visitorId":"v","item_id":"i","ts":1706702400}', "v"),
    no(b'{"userId":"u","item_id":"i","ts":1706702400}', "user_id (who): missing", settings={
        "fields": {"user_id": "who"}}, note="a mapped name is the only one"),
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
    no(orjson.dumps(_SEGMENT), "item_id: missing", settings={"envelope": "none"}),
    no(plain(), "no op", settings={"envelope": "debezium"}),
]
_ROW = {"user_id": 1, "item_id": 2}
_MS = 1706702400000
_WRITTEN = {"database": "shop", "table": "events", "type": "insert", "ts": 1706702400, "data": _ROW}
_CANAL = {"data": [_ROW, _ROW | {"item_id": "3"}], "es": _MS, "id": 5, "isDdl": False, "table": "t", "ts": _MS + 900,
          "type": "INSERT"}
_PRODUCT = {"schema": "iglu:com.snowplowanalytics.snowplow.ecommerce/product/jsonschema/1-0-0"}
_LINE = [""] * 131
_LINE[3], _LINE[6], _LINE[12], _LINE[124] = "2024-01-31 12:00:05.1", "0b2f5b32-7e6c-4e0a-8e34-0d7a2f1c9e55", "u", \
    "2024-01-31 12:00:00.000"
_LINE[52] = orjson.dumps({"schema": "iglu:com.snowplowanalytics.snowplow/contexts/jsonschema/1-0-0", "data": [
    _PRODUCT | {"data": {"id": "i"}}, _PRODUCT | {"data": {"id": 7}}, {"schema": "?"}]}).decode()
_LINE[58] = orjson.dumps({"schema": "iglu:com.snowplowanalytics.snowplow/unstruct_event/jsonschema/1-0-0", "data": {
    "schema": "iglu:com.snowplowanalytics.snowplow.ecommerce/snowplow_ecommerce_action/jsonschema/1-0-2",
    "data": {"type": "transaction"}}}).decode()
_GA4 = {"event_date": "20240131", "event_timestamp": _MS * 1000, "event_name": "view_item", "user_id": None,
        "user_pseudo_id": "p.1"}
_AMPLITUDE = {"user_id": "u", "device_id": "d", "event_type": "view", "$insert_id": "z",
              "event_time": "2024-01-31 12:00:00.000000", "event_properties": {"item_id": "i"}}
_MPARTICLE = {"mpid": "77", "user_identities": {"customer_id": "c"}, "events": [{
    "event_type": "commerce_event", "data": {"timestamp_unixtime_ms": _MS, "product_action": {
        "action": "view_detail", "products": [{"id": "i"}, {"id": "j"}]}}}]}
_VISIT = {"idVisit": 1, "visitorId": "v", "serverTimestamp": 1706702400}
CONNECTORS = [
    one(orjson.dumps({"schema": {"type": "struct"}, "payload": _ROW | {"ts": _MS}}), "1", "2",
        note="Kafka Connect's JSON with its schema"),
    one(orjson.dumps({"schema": {"type": "string"}, "payload": plain().decode()})),
    no(orjson.dumps({"schema": {}, "payload": None}), "user_id: missing"),
    one(orjson.dumps(_ROW | {"__op": "c", "__deleted": "false", "__source_ts_ms": _MS}), "1", "2",
        note="Debezium, flattened"),
    no(orjson.dumps(_ROW | {"__op": "d", "__deleted": "true", "__source_ts_ms": _MS}), "a deleted row is no event"),
    one(orjson.dumps({"op": "r", "ts_ms": _MS, "after": orjson.dumps({
        "_id": {"$oid": "a"}, "user_id": {"$numberLong": "5"}, "item_id": {"$oid": "65bb"},
        "ts": {"$date": _MS}}).decode()}), "5", "65bb", note="Debezium of MongoDB: the row is a text"),
    no(orjson.dumps({"op": "d", "before": _ROW, "after": None}), "a deleted row is no event"),
    no(orjson.dumps({"op": "t", "before": None, "after": None}), "a deleted row is no event"),
    one(orjson.dumps(_WRITTEN), "1", "2", note="Maxwell"),
    no(orjson.dumps(_WRITTEN | {"type": "delete"}), "a deleted row is no event"),
    no(orjson.dumps(_WRITTEN | {"type": "table-create"}), "writes no row"),
    Case(orjson.dumps(_CANAL), [("1", "2", NOON, "interaction"), ("1", "3", NOON, "interaction")], "Canal"),
    no(orjson.dumps(_CANAL | {"type": "ALTER", "isDdl": True, "data": None}), "writes no row"),
    no(orjson.dumps(_CANAL | {"data": []}), "holds no row"),
    one(orjson.dumps({"_airbyte_ab_id": "x", "_airbyte_emitted_at": _MS, "_airbyte_data": _ROW}), "1", "2",
        note="Airbyte"),
    one(orjson.dumps({"@timestamp": "2024-01-31T12:00:00Z", "host": {}, "message": orjson.dumps(_ROW).decode()}), "1",
        "2", note="Filebeat, Logstash"),
    no(orjson.dumps({"@timestamp": "2024-01-31T12:00:00Z", "message": "{not json"}), "holds no row"),
    one(orjson.dumps({"detail-type": "View", "time": "2024-01-31T12:00:00Z", "detail": _ROW}), "1", "2",
        note="Amazon EventBridge"),
    one(orjson.dumps({"Type": "Notification", "Message": orjson.dumps(_ROW).decode(),
                      "Timestamp": "2024-01-31T12:00:00.000Z"}), "1", "2", note="Amazon SNS"),
]
TRACKERS = [
    one(orjson.dumps({key: value for key, value in _SEGMENT.items() if key != "messageId"}), kind="Product Viewed"),
    one(orjson.dumps(_SEGMENT | {"userId": "", "anonymousId": "a", "channel": "web"}), "a", kind="Product Viewed",
        note="RudderStack"),
    Case(orjson.dumps({"batch": [_SEGMENT, _SEGMENT | {"userId": "v"}], "sentAt": "2024-01-31T12:00:00Z"}), [
        ("u", "i", NOON, "Product Viewed"), ("v", "i", NOON, "Product Viewed")], "Segment, a batch"),
    no(orjson.dumps({"type": "identify", "userId": "u", "messageId": "m", "timestamp": _MS, "traits": {}}),
       "item_id ("),
    Case("\t".join(_LINE).encode(), [("u", "i", NOON, "transaction"), ("u", "7", NOON, "transaction")],
         "Snowplow's enriched events as its pipeline writes them: 131 values between tabs",
         event_id="0b2f5b32-7e6c-4e0a-8e34-0d7a2f1c9e55#0"),
    no("\t".join(_LINE[:80]).encode(), "Invalid JSON"),
    Case(orjson.dumps(_GA4 | {"items": [{"item_id": "i"}, {"item_id": "j"}]}), [
        ("p.1", "i", NOON, "view_item"), ("p.1", "j", NOON, "view_item")], "Google Analytics 4, export"),
    one(orjson.dumps(_GA4 | {"event_params": [{"key": "item_id", "value": {"string_value": "i"}}]}), "p.1",
        kind="view_item"),
    one(orjson.dumps({"client_id": "c", "timestamp_micros": str(_MS * 1000), "events": [
        {"name": "view_item", "params": {"items": [{"item_id": "i"}]}}]}), "c", kind="view_item",
        note="Google Analytics 4, measurement protocol"),
    one(orjson.dumps(_AMPLITUDE), kind="view", event_id="z", note="Amplitude"),
    one(orjson.dumps({"api_key": "k", "events": [_AMPLITUDE]}), kind="view"),
    one(orjson.dumps({"event": "View", "properties": {
        "distinct_id": "u", "time": 1706702400, "$insert_id": "x", "item_id": "i"}}), kind="View", event_id="x",
        note="Mixpanel"),
    one(orjson.dumps({"uuid": "x", "event": "view", "distinct_id": "u", "properties": {"product_id": 3},
                      "timestamp": "2024-01-31T12:00:00Z"}), "u", "3", kind="view", event_id="x", note="PostHog"),
    Case(orjson.dumps(_MPARTICLE), [("c", "i", NOON, "view_detail"), ("c", "j", NOON, "view_detail")], "mParticle"),
    one(orjson.dumps(_VISIT | {"actionDetails": [{"timestamp": 1706702400, "productViewSku": "s"}]}), "v", "s",
        note="Matomo"),
    no(orjson.dumps(_VISIT | {"actionDetails": [{"timestamp": 1706702400, "url": "/"}]}), "item_id: missing"),
    Case(orjson.dumps({"session": 12, "events": [{"aid": 1, "ts": _MS, "type": "clicks"},
                                                 {"aid": 2, "ts": _MS, "type": "carts"}]}),
         [("12", "1", NOON, "clicks"), ("12", "2", NOON, "carts")], "what is said once holds for each of a list"),
    one(b'{"user_id":"u","item_id":"i"}', kind="view", headers=(
        ("ce-specversion", b"1.0"), ("ce-type", b"view"), ("ce-time", b"2024-01-31T12:00:00Z"))),
    one(b"[" + orjson.dumps(_CLOUD | {"data": orjson.dumps({"user_id": "u", "item_id": "i"}).decode()}) + b"]",
        kind="com.shop.view", note="CloudEvents, a batch; the data as text"),
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
    Case(plain() + b"\n\n" + plain(item_id="j") + b"\n", [
        ("u", "i", NOON, "interaction"), ("u", "j", NOON, "interaction")], "an object a line"),
    no(plain() + b"\n{", "Invalid JSON"),
    one(orjson.dumps(plain().decode()), note="JSON within a text: it was written twice"),
    one(plain() + b"\x00", note="C's end of a text"),
    no(b"\x00", "Invalid JSON"),
    no(b"{'user_id': 'u', 'item_id': 'i', 'ts': 1706702400}", "a Python dict as text: send json.dumps(event)"),
    no(b"\x1f\x8b\x08\x00", "compressed by gzip"),
    no(b"<html></html>", "XML or HTML"),
    no(b"Obj\x01\x04", "an Avro file"),
    no(b"\xc3\x01\x00", "Avro without"),
    no(b"null", "not an object"),
    no(b'"text"', "not an object"),
    no(b"7", "not an object"),
    no(b"{}", "the event has nothing"),
    no(b"user_id=u&item_id=i", "Invalid JSON"),
    no(b"[" * 5000 + b"]" * 5000, "Invalid JSON"),
    no(b"\x80\x04\x95\x10\x00\x00\x00", "Invalid JSON", "a pickle is never opened"),
    no(plain().decode().encode("utf-16"), "UTF-16: send UTF-8"),
    no('{"user_id":"Zoë","item_id":"i","event_time":1706702400}'.encode("latin-1"), "Invalid JSON"),
]
GROUPS = {"Ids": IDS, "Times": TIMES, "Optional fields": OPTIONAL, "Names": NAMES, "Envelopes": ENVELOPES,
          "Trackers": TRACKERS, "Connectors": CONNECTORS, "Records": RECORDS}
