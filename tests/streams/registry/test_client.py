"""What confluent-kafka's serializers write is read, by the schemas of a registry that speaks HTTP and may be away."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import pytest
from confluent_kafka.schema_registry import (
    Schema,
    SchemaReference,
    SchemaRegistryClient,
    header_schema_id_serializer,
)
from confluent_kafka.schema_registry.avro import AvroSerializer
from confluent_kafka.schema_registry.protobuf import ProtobufSerializer
from confluent_kafka.serialization import MessageField, SerializationContext

from schemas.errors import FreshetError, PoisonError, SettingsError
from schemas.reading.framing import Schemas, frame_of
from schemas.reading.reader import EventReader, ReadEvent
from schemas.settings import EventSettings, RegistrySettings
from streams.registry.client import AwayError, RefusedError, SchemaRegistry, check_registry
from tests.registry import RegistryStub, registry
from tests.schemas.reading.schemas import EVENT, NOON, NOON_UTC, event_message, order_message

TOPIC = "behaviour-events"
FIELDS = {"user_id": "user", "item_id": "item.sku", "event_time": "at"}


@pytest.fixture
def stub() -> Iterator[RegistryStub]:
    with registry() as running:
        yield running


class Reader:
    """The reader of streams, and what it asks."""

    def __init__(self, stub: RegistryStub, kept: int = 1000, **settings: Any) -> None:
        self.schemas = Schemas(kept)
        self.registry = SchemaRegistry(RegistrySettings(url=stub.url, **settings), self.schemas, first_wait_s=0.02)

    def read(self, value: bytes, headers: Any = (), **events: Any) -> list[ReadEvent]:
        frame = frame_of(value, headers)
        assert frame is not None
        assert asyncio.run(self.registry.learn([frame]))
        found, reason = EventReader(EventSettings(**events), self.schemas).record(value, headers)
        assert not reason
        return found

    def refusal(self, value: bytes) -> str:
        with pytest.raises(PoisonError) as refused:
            self.read(value)
        assert "\n" not in refused.value.reason
        return refused.value.reason


def client(stub: RegistryStub) -> SchemaRegistryClient:
    return SchemaRegistryClient({"url": stub.url})


def avro(stub: RegistryStub, schema: Any, data: dict[str, Any], headers: Any = None, **config: Any) -> bytes:
    serializer = AvroSerializer(client(stub), schema if isinstance(schema, Schema) else json.dumps(schema), conf=config)
    return serializer(data, SerializationContext(TOPIC, MessageField.VALUE, headers))


def protobuf(stub: RegistryStub, message: Any, headers: Any = None, **config: Any) -> bytes:
    serializer = ProtobufSerializer(type(message), client(stub), config)
    return serializer(message, SerializationContext(TOPIC, MessageField.VALUE, headers))


def wanted(events: list[ReadEvent]) -> list[tuple[str, str, float, str]]:
    return [tuple(event[:4]) for event in events]


class TestAvro:
    def test_an_event(self, stub: RegistryStub) -> None:
        value = avro(stub, EVENT, {"user_id": "u", "item_id": 7, "event_time": NOON_UTC, "event_type": None})
        assert wanted(Reader(stub).read(value)) == [("u", "7", NOON, "interaction")]

    @pytest.mark.parametrize(("kind", "value"), [
        ({"type": "long", "logicalType": "timestamp-millis"}, NOON_UTC),
        ({"type": "long", "logicalType": "timestamp-micros"}, NOON_UTC),
        ({"type": "long", "logicalType": "local-timestamp-millis"}, NOON_UTC.replace(tzinfo=None)),
        ("long", int(NOON * 1000)), ("double", NOON), ("string", "2024-01-31T12:00:00Z"),
        ({"type": "bytes", "logicalType": "decimal", "precision": 20, "scale": 3}, Decimal("1706702400.000")),
        (["null", {"type": "long", "logicalType": "timestamp-millis"}], NOON_UTC)])
    def test_times(self, stub: RegistryStub, kind: Any, value: Any) -> None:
        schema = {"type": "record", "name": "E", "fields": [
            {"name": "user_id", "type": "string"}, {"name": "item_id", "type": "string"},
            {"name": "event_time", "type": kind}]}
        sent = avro(stub, schema, {"user_id": "u", "item_id": "i", "event_time": value})
        assert wanted(Reader(stub).read(sent)) == [("u", "i", NOON, "interaction")]

    @pytest.mark.parametrize(("kind", "value", "id_"), [
        ("int", 7, "7"), ("long", 2**53 + 1, str(2**53 + 1)), ("double", 7.0, "7"),
        ({"type": "bytes", "logicalType": "decimal", "precision": 30, "scale": 0}, Decimal(10**25), "1" + 25 * "0"),
        ({"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}, Decimal("7.00"), "7"),
        ({"type": "string", "logicalType": "uuid"}, "0b2f5b32-7e6c-4e0a-8e34-0d7a2f1c9e55",
         "0b2f5b32-7e6c-4e0a-8e34-0d7a2f1c9e55"),
        ({"type": "enum", "name": "Who", "symbols": ["a", "b"]}, "b", "b"), (["null", "string", "long"], 9, "9")])
    def test_ids(self, stub: RegistryStub, kind: Any, value: Any, id_: str) -> None:
        schema = {"type": "record", "name": "E", "fields": [
            {"name": "user_id", "type": kind}, {"name": "item_id", "type": "string"},
            {"name": "ts", "type": "long"}]}
        sent = avro(stub, schema, {"user_id": value, "item_id": "i", "ts": int(NOON)})
        assert wanted(Reader(stub).read(sent)) == [(id_, "i", NOON, "interaction")]

    def test_mapped_names_records_in_records_and_references(self, stub: RegistryStub) -> None:
        item = {"type": "record", "name": "Item", "namespace": "shop", "fields": [{"name": "sku", "type": "string"}]}
        client(stub).register_schema("item", Schema(json.dumps(item), "AVRO"))
        event = {"type": "record", "name": "Bought", "namespace": "shop", "fields": [
            {"name": "user", "type": "long"}, {"name": "item", "type": "shop.Item"},
            {"name": "also", "type": ["null", "shop.Item"]},
            {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}}]}
        schema = Schema(json.dumps(event), "AVRO", [SchemaReference("shop.Item", "item", 1)])
        sent = avro(stub, schema, {"user": 4, "item": {"sku": "i"}, "also": None, "at": NOON_UTC})
        assert wanted(Reader(stub).read(sent, fields=FIELDS)) == [("4", "i", NOON, "interaction")]

    def test_a_schema_that_grew(self, stub: RegistryStub) -> None:
        older = {"type": "record", "name": "E", "fields": EVENT["fields"][:3]}
        newer = {"type": "record", "name": "E", "fields": [
            *EVENT["fields"], {"name": "price", "type": ["null", "double"], "default": None}]}
        reader = Reader(stub)
        event = {"user_id": "u", "item_id": 7, "event_time": NOON_UTC}
        values = [avro(stub, older, event), avro(stub, newer, event | {"event_type": "buy", "price": 1.5})]
        assert [wanted(reader.read(value)) for value in values] == [
            [("u", "7", NOON, "interaction")], [("u", "7", NOON, "buy")]]

    def test_an_envelope(self, stub: RegistryStub) -> None:
        row = {"type": "record", "name": "Row", "fields": EVENT["fields"]}
        schema = {"type": "record", "name": "Envelope", "fields": [
            {"name": "before", "type": ["null", row]}, {"name": "after", "type": ["null", "Row"]},
            {"name": "op", "type": "string"}, {"name": "ts_ms", "type": ["null", "long"]}]}
        sent = avro(stub, schema, {"before": None, "op": "c", "ts_ms": 5, "after": {
            "user_id": "u", "item_id": 7, "event_time": NOON_UTC, "event_type": "view"}})
        assert wanted(Reader(stub).read(sent)) == [("u", "7", NOON, "view")]

    def test_an_id_in_the_header(self, stub: RegistryStub) -> None:
        headers: list[Any] = []
        sent = avro(stub, EVENT, {"user_id": "u", "item_id": 7, "event_time": NOON_UTC, "event_type": None}, headers,
                    **{"schema.id.serializer": header_schema_id_serializer})
        assert headers
        assert wanted(Reader(stub).read(sent, headers)) == [("u", "7", NOON, "interaction")]


class TestProtobuf:
    def test_an_event(self, stub: RegistryStub) -> None:
        assert wanted(Reader(stub).read(protobuf(stub, event_message()))) == [("u", "7", NOON, "view")]

    def test_a_message_within_another_by_its_place_in_the_file(self, stub: RegistryStub) -> None:
        sent = protobuf(stub, order_message().lines[1])
        assert sent[5:8] == b"\x04\x02\x00"  # two places: 1, 0
        assert wanted(Reader(stub).read(sent, fields={"event_time": "at"})) == [("v", "j", NOON, "interaction")]

    def test_names_within_messages_and_a_file_that_is_imported(self, stub: RegistryStub) -> None:
        sent = protobuf(stub, order_message())
        assert len(stub.versions) == 2  # the imported file has a subject of its own
        assert wanted(Reader(stub).read(sent, fields={
            "user_id": "buyer.id", "item_id": "lines.0.item_id", "event_time": "lines.0.at"})) == [
            ("9", "i", NOON, "interaction")]

    def test_the_place_in_the_header(self, stub: RegistryStub) -> None:
        headers: list[Any] = []
        sent = protobuf(
            stub, order_message().lines[0], headers, **{"schema.id.serializer": header_schema_id_serializer})
        assert wanted(Reader(stub).read(sent, headers, fields={"event_time": "at"})) == [
            ("u", "i", NOON, "interaction")]

    def test_an_id_of_zero_is_an_id_that_was_not_set(self, stub: RegistryStub) -> None:
        assert "user_id: missing" in Reader(stub).refusal(protobuf(stub, event_message(user_id="")))

    def test_a_registry_that_gives_no_descriptors_is_named(self, stub: RegistryStub) -> None:
        sent = protobuf(stub, event_message())
        stub.serialized = False
        assert "did not answer format=serialized" in Reader(stub).refusal(sent)


def framed(schema: int, payload: bytes) -> bytes:
    return b"\x00" + schema.to_bytes(4, "big") + payload


def test_json_in_the_framing_needs_no_schema_that_is_known(stub: RegistryStub) -> None:
    body = orjson.dumps({"user_id": "u", "item_id": "i", "ts": NOON})
    known = stub.register("s", {"schema": "{}", "schemaType": "JSON"})
    for schema in (known, 99):
        assert wanted(Reader(stub).read(framed(schema, body))) == [("u", "i", NOON, "interaction")]


class TestRefusals:
    @pytest.mark.parametrize("schema", [99, 2**31, 2**32 - 1])
    def test_a_schema_that_is_not_there(self, stub: RegistryStub, schema: int) -> None:
        assert f"the schema registry has no schema {schema}" in Reader(stub).refusal(framed(schema, b"\x02u"))

    def test_bytes_of_another_schema(self, stub: RegistryStub) -> None:
        whole = avro(stub, EVENT, {"user_id": "u", "item_id": 7, "event_time": NOON_UTC, "event_type": None})
        reader = Reader(stub)
        for cut in range(5, len(whole)):
            assert "schema 1" in reader.refusal(whole[:cut])
        assert "1 bytes are left over" in reader.refusal(whole + b"\x00")
        message = protobuf(stub, event_message())
        assert "schema 3: Protobuf (DecodeError)" in reader.refusal(message + b"\xff")
        assert "no message [8]" in reader.refusal(message[:5] + b"\x02\x10" + message[6:])

    @pytest.mark.parametrize(("schema", "why"), [
        ({"schema": "{"}, "no Avro schema"), ({"schema": "3"}, "no Avro schema"),
        ({"schema": '"Nope"'}, "type Nope is not defined"),
        ({"schema": '{"type": "array", "items": "null"}'}, "elements without a byte"),
        ({"schema": "bm8=", "schemaType": "PROTOBUF"}, "Protobuf: no descriptor"),
        ({"schema": "", "schemaType": "XML"}, "its type 'XML' is not known"),
        ({"schema": '"string"', "references": [{"name": "a", "subject": "gone", "version": 1}]}, "Version not found"),
        ({"schema": '"string"', "references": [{"name": "a"}]}, "a reference without"),
    ])
    def test_schemas_that_are_none(self, stub: RegistryStub, schema: dict[str, Any], why: str) -> None:
        number = stub.register("s", schema)
        assert why in Reader(stub).refusal(framed(number, b"\x02u"))

    def test_references_in_a_circle_come_to_an_end(self, stub: RegistryStub) -> None:
        number = stub.register("s", {"schema": '"string"', "references": [
            {"name": "a", "subject": "s", "version": 1}]})
        assert Reader(stub).refusal(framed(number, b"\x02u"))
        assert len(stub.asked) < 10


class TestAsking:
    def test_each_schema_is_asked_for_once(self, stub: RegistryStub) -> None:
        reader = Reader(stub)
        value = avro(stub, EVENT, {"user_id": "u", "item_id": 7, "event_time": NOON_UTC, "event_type": None})
        stub.asked.clear()
        for _ in range(3):
            reader.read(value)
        assert stub.asked == ["/schemas/ids/1"]
        for _ in range(3):
            reader.refusal(framed(99, b"x"))
        assert stub.asked[1:] == ["/schemas/ids/99"] * 2  # twice, since a follower may be late

    def test_what_is_kept_is_bounded_but_for_the_batch_in_hand(self, stub: RegistryStub) -> None:
        reader = Reader(stub, kept=3)
        schemas = [json.dumps({"type": "map", "values": "string", "n": n}) for n in range(8)]
        values = [framed(stub.register("s", {"schema": schema}), b"\x00") for schema in schemas]
        frames = [frame for value in values if (frame := frame_of(value))]
        assert asyncio.run(reader.registry.learn(frames))
        assert all(reader.schemas.decode(frame) == {} for frame in frames)
        assert asyncio.run(reader.registry.learn(frames[:1]))
        assert len(reader.schemas) <= 4
        assert reader.schemas.decode(frames[0]) == {}

    @pytest.mark.parametrize("fault", [
        (500, b"oops"), (503, b""), (404, b"<html>not here</html>"), (200, b"<html>login</html>"), (429, b"{}"),
        (401, b'{"error_code": 401}'), (404, b'{"error_code": 404, "message": "HTTP 404 Not Found"}')])
    def test_a_registry_that_is_away_or_wrong_is_waited_for(self, stub: RegistryStub, fault: tuple[int, bytes]) -> None:
        value = avro(stub, EVENT, {"user_id": "u", "item_id": 7, "event_time": NOON_UTC, "event_type": None})
        reader, said = Reader(stub), []
        stub.fault = fault

        def waits(why: str) -> None:
            said.append(why)
            if len(said) == 3:
                stub.fault = None

        frame = frame_of(value)
        assert frame
        assert asyncio.run(reader.registry.learn([frame], waits=waits))
        assert len(said) == 4
        assert said[-1] == ""
        assert stub.url in said[0]
        assert reader.schemas.decode(frame)["user_id"] == "u"

    def test_a_slow_one_too_and_the_event_loop_goes_on(self, stub: RegistryStub) -> None:
        value = avro(stub, EVENT, {"user_id": "u", "item_id": 7, "event_time": NOON_UTC, "event_type": None})
        reader, said = Reader(stub, timeout_s=0.2), []
        stub.delay_s = 5.0

        def waits(why: str) -> None:
            said.append(why)
            stub.delay_s = 0.0

        async def both() -> int:
            frame = frame_of(value)
            assert frame
            asked = asyncio.create_task(reader.registry.learn([frame], waits=waits))
            turns = 0
            while not asked.done():
                await asyncio.sleep(0.005)
                turns += 1
            assert asked.result()
            return turns

        assert asyncio.run(both()) > 10
        assert "does not answer within 0.2 s" in said[0]

    def test_waiting_ends_when_told(self, stub: RegistryStub) -> None:
        stub.fault = (500, b"")
        stopped = threading.Event()
        frame = frame_of(framed(1, b"x"))
        assert frame
        threading.Timer(0.2, stopped.set).start()
        assert asyncio.run(Reader(stub).registry.learn([frame], stopped.is_set)) is False

    def test_the_next_server_of_a_cluster_is_asked(self, stub: RegistryStub) -> None:
        value = avro(stub, EVENT, {"user_id": "u", "item_id": 7, "event_time": NOON_UTC, "event_type": None})
        reader = Reader(stub)
        reader.registry = SchemaRegistry(
            RegistrySettings(url=f"http://127.0.0.1:1, {stub.url}/"), reader.schemas)
        assert reader.read(value)


class TestSettings:
    def test_basic_authentication(self, stub: RegistryStub) -> None:
        stub.user = "key:sec:ret"
        right = SchemaRegistry(RegistrySettings(url=stub.url, username="key", password="sec:ret"), Schemas())  # noqa: S106
        asyncio.run(right.check())
        with pytest.raises(RefusedError, match="refuses user 'key'") as refused:
            asyncio.run(SchemaRegistry(
                RegistrySettings(url=stub.url, username="key", password="guess"), Schemas()).check())  # noqa: S106
        assert "guess" not in str(refused.value)

    def test_at_the_start_a_refusal_ends_streams_and_an_absence_does_not(self, stub: RegistryStub) -> None:
        asyncio.run(check_registry(RegistrySettings()))
        asyncio.run(check_registry(RegistrySettings(url=stub.url)))
        asyncio.run(check_registry(RegistrySettings(url="http://127.0.0.1:1")))
        stub.fault = (404, b'{"error_code": 404, "message": "HTTP 404 Not Found"}')  # too old for this path
        asyncio.run(check_registry(RegistrySettings(url=stub.url)))
        for fault in ((401, b""), (200, b"<html>"), (404, b"nothing here")):
            stub.fault = fault
            with pytest.raises(FreshetError, match="FRESHET_REGISTRY_"):
                asyncio.run(check_registry(RegistrySettings(url=stub.url)))
        stub.fault = (500, b"")
        with pytest.raises(AwayError, match="HTTP 500"):
            asyncio.run(SchemaRegistry(RegistrySettings(url=stub.url), Schemas()).check())

    @pytest.mark.parametrize(("url", "why"), [
        ("registry:8081", "must be http"), ("ftp://registry", "must be http"), ("http://", "must be http"),
        ("https://me:secret@registry", "holds a password"), (" , ", "not set")])
    def test_urls(self, url: str, why: str) -> None:
        with pytest.raises(SettingsError, match=why) as refused:
            SchemaRegistry(RegistrySettings(url=url), Schemas())
        assert "secret" not in str(refused.value)

    def test_certificates(self, tmp_path: Path) -> None:
        (tmp_path / "ca.pem").write_text("no certificate")
        for name, why in (("gone.pem", "cannot be read"), ("ca.pem", "no certificate in PEM")):
            with pytest.raises(SettingsError, match=why):
                SchemaRegistry(RegistrySettings(url="https://r", ssl_cafile=str(tmp_path / name)), Schemas())
