"""Decoders of what comes over topics, from state stores and from the knowledge store, and the decisions behind them."""

from __future__ import annotations

import base64
import io
import json
import math
from decimal import Decimal
from typing import Any

import numpy as np
import orjson
from aiokafka import ConsumerRecord
from fastavro import parse_schema, schemaless_writer
from pydantic import BaseModel

from schemas.catalogue.item import CatalogueItem
from schemas.catalogue.update import Alike, ItemUpdate
from schemas.codec import dead_letter, decode, encode
from schemas.errors import FreshetError
from schemas.messages import (
    AlignmentSample,
    Erasure,
    JudgedEvent,
    Judgement,
    KnowledgeRequest,
    KnowledgeUpdate,
    Margin,
    ModelUpdate,
    RankingRequest,
    Recommendation,
    ScoredItem,
    UserSeen,
)
from schemas.reading.framing import Schemas, Written
from schemas.reading.reader import EventReader
from schemas.settings import EventSettings
from schemas.topics import TOPICS
from streams.decisions.planner import Plan, States
from streams.detection import pooled
from streams.profile.decoding import decode_events
from streams.profile.state import UserState, dumps, loads
from streams.service.outbox import wire
from tests.fuzz.campaign import Decoder
from tests.schemas.reading.cases import GROUPS, RECORDS
from tests.schemas.reading.schemas import EVENT, NOON_UTC, event_message, order_message
from tests.streams.cases import event, planner
from workers.roles.knowledge.worker import history_hash, newest_requests
from workers.roles.ranking.merging import merge
from workers.store.point import KnowledgePoint, from_record, payload, vectors

NOW = 1.7e9
DIM = 8
_planner = planner()
_pools = pooled.Pools()


def _base() -> bytes:
    """Return a state with a history, knowledge and tests under way."""
    states: States = {}
    stage = planner()
    (request,) = stage.events(states, [event(n) for n in range(5)], NOW).knowledge
    stage.updates(states, [(KnowledgeUpdate(
        user_id="u", version=request.version, model_version="m1", reason="drift", count=3, event_time=2.0,
        history_hash="h", caused_at=1.0, generated_at=2.0), 1.0)], NOW)
    stage.events(states, [event(n) for n in range(5, 9)], NOW)
    return dumps(states["u"])


BASE = _base()
ADVANCED: UserState = loads(BASE)
UPDATE = KnowledgeUpdate(
    user_id="u", version=2, model_version="m1", reason="drift", count=8, event_time=7.0, history_hash="0f",
    caused_at=1.0, generated_at=2.0)
JUDGEMENT = Judgement(
    user_id="u", model_version="m1", knowledge_model_version="m1", codes=[3, 1, 2], event_time=8.0, judged_at=9.0,
    margins=[Margin(event_id=f"e{n}", item_id=f"i{n}", count=n + 1, value=-0.5, knowledge_version=1)
             for n in range(5, 9)])
REQUEST = KnowledgeRequest(
    user_id="u", version=2, reason="stale", history=["i1", "i2"], count=8, event_id="e7", event_time=7.0, caused_at=1.0,
    requested_at=2.0, priority=0.5)
RANKING = RankingRequest(
    user_id="u", reason="event", history=["i1", "i2", "i3"], seen=["i9"], count=3, knowledge_version=1, event_time=7.0,
    caused_at=1.0, requested_at=2.0, judged=[JudgedEvent(event_id="e", item_id="i3", position=2, count=3)])
READER = EventReader(EventSettings())
REGISTRY = Schemas()
REGISTERED = EventReader(EventSettings(), REGISTRY)
HEADERS = ((), (("ce_type", b"view"), ("ce_id", b"e1"), ("ce_time", b"2020-01-01T00:00:00Z")))
EVENTS = [
    b'{"user_id": "u", "item_id": "i3", "event_time": 1000.5, "event_id": "e9", "event_type": "view"}',
    b'{"user_id": "u", "item_id": "i4", "event_time": "2020-01-01T00:00:00Z"}',
    '{"schema_version": 1, "user_id": "ü", "item_id": "new", "event_time": 1700000000, "more": {"a": [1]}}'.encode(),
    b'{"user_id": "v", "item_id": "i5", "event_time": 7, "event_id": null, "event_type": "buy"}']


def _json(data: bytes) -> bool:
    try:
        json.loads(data)
    except (ValueError, RecursionError):
        return False
    return True


SHAPES = [case.value for group in GROUPS.values() for case in group if _json(case.value)]
RAW = [case.value for case in RECORDS if case.value]


def _sent(plan: Plan, states: States) -> None:
    """Do what a stage does with a plan: encode its states and messages."""
    for user in plan.changed:
        loads(dumps(states[user]))
    for message in (*plan.ranking, *plan.knowledge, *plan.alignment):
        wire(message)


def behaviour_event(data: bytes, reader: EventReader = READER) -> None:
    """Decode an event and fold it into a user's state."""
    records = [ConsumerRecord(
        topic="behaviour-events", partition=0, offset=100, timestamp=1_700_000_000_000, timestamp_type=0, key=b"u",
        value=data, checksum=None, serialized_key_size=1, serialized_value_size=len(data), headers=headers)
        for headers in HEADERS]
    events, usable, unusable = decode_events(records, NOW, 86_400.0, reader)
    assert len(events) == len(usable)
    for bad in unusable:
        encode(dead_letter("t", 0, 1, bad.reason, value=bad.record.value, key=b"u", role="streams", failed_at=NOW))
    states: States = {"u": loads(BASE)}
    _sent(_planner.events(states, events, NOW), states)


_AVRO = [
    EVENT,
    {"type": "record", "name": "All", "fields": [
        {"name": "user_id", "type": ["null", "string", "long", {"type": "fixed", "name": "F", "size": 16}]},
        {"name": "item_id", "type": {"type": "bytes", "logicalType": "decimal", "precision": 30, "scale": 2}},
        {"name": "event_time", "type": {"type": "long", "logicalType": "timestamp-micros"}},
        {"name": "more", "type": {"type": "map", "values": {"type": "array", "items": ["int", "double", "boolean"]}}},
        {"name": "day", "type": {"type": "int", "logicalType": "date"}},
        {"name": "kind", "type": {"type": "enum", "name": "K", "symbols": ["a", "b"]}}]},
    {"type": "record", "name": "Tree", "fields": [
        {"name": "user_id", "type": "string"}, {"name": "item_id", "type": "string"},
        {"name": "ts", "type": "double"}, {"name": "inner", "type": {"type": "array", "items": ["null", "Tree"]}}]}]
_VALUES: list[dict[str, Any]] = [
    {"user_id": "u", "item_id": 3, "event_time": NOON_UTC, "event_type": "view"},
    {"user_id": "u", "item_id": Decimal("7.00"), "event_time": NOON_UTC, "more": {"a": [1, 2.5, True]},
     "day": 5, "kind": "b"},
    {"user_id": "u", "item_id": "i3", "ts": NOW, "inner": [None, {
        "user_id": "v", "item_id": "i", "ts": 1.0, "inner": []}]}]


def schema(data: bytes) -> None:
    """Take a schema as the registry gave it, and read a record by it."""
    known = Schemas()
    known.learn(1, Written("AVRO", data.decode(errors="replace")), math.inf)
    behaviour_event(b"\x00\x00\x00\x00\x01\x02u\x06" + b"\x02" * 40, EventReader(EventSettings(), known))


def file_descriptor(data: bytes) -> None:
    """Take a Protobuf file as the registry gave it, and read a record by it."""
    known = Schemas()
    known.learn(1, Written("PROTOBUF", base64.b64encode(data).decode()), math.inf)
    behaviour_event(b"\x00\x00\x00\x00\x01\x00" + event_message().SerializeToString(),
                    EventReader(EventSettings(), known))


def _framed() -> list[bytes]:
    """Teach the registry's schemas and return a record of each."""
    values = []
    for number, (schema, value) in enumerate(zip(_AVRO, _VALUES, strict=True), 1):
        REGISTRY.learn(number, Written("AVRO", json.dumps(schema)), math.inf)
        file = io.BytesIO()
        schemaless_writer(file, parse_schema(schema), value)
        values.append(b"\x00" + number.to_bytes(4, "big") + file.getvalue())
    file_of = event_message().DESCRIPTOR.file
    people = file_of.dependencies[1]
    REGISTRY.learn(4, Written("PROTOBUF", base64.b64encode(file_of.serialized_pb).decode(), [
        (people.name, base64.b64encode(people.serialized_pb).decode())]), math.inf)
    values += [b"\x00\x00\x00\x00\x04" + place + message.SerializeToString() for place, message in (
        (b"\x00", event_message()), (b"\x02\x02", order_message()), (b"\x04\x02\x00", order_message().lines[0]))]
    REGISTRY.learn(5, Written("JSON", "{}"), math.inf)
    return [*values, b"\x00\x00\x00\x00\x05" + EVENTS[0]]


def judgement(data: bytes) -> None:
    """Decode a judgement, bet on it in streams and in the guard."""
    message = decode(Judgement, data)
    states: States = {message.user_id: loads(BASE)}
    _sent(_planner.judgements(states, [message], NOW), states)
    pooled.fold(_pools, [pooled.MarginBatch(
        message.user_id, message.knowledge_model_version or message.model_version, message.codes,
        [margin.count for margin in message.margins], [margin.value for margin in message.margins])], 2.0, 0.01, 12)


def pools_kept(data: bytes) -> None:
    """Decode the guard's evidence."""
    pooled.dumps(pooled.loads(data))


def knowledge_update(data: bytes) -> None:
    """Decode an update and note it in a state."""
    message = decode(KnowledgeUpdate, data)
    states: States = {message.user_id: loads(BASE)}
    _sent(_planner.updates(states, [(message, NOW)], NOW), states)
    _sent(_planner.events(states, [event(20, message.user_id)], NOW), states)


def knowledge_request(data: bytes) -> None:
    """Decode a request, choose the newest and store a point for it."""
    message = decode(KnowledgeRequest, data)
    for request in newest_requests([REQUEST, message]):
        point = KnowledgePoint(
            request.user_id, request.version, "m1", np.ones((3, DIM), np.float16), np.ones(DIM, np.float32),
            history_hash(request.history), request.reason, NOW, request.event_time, request.count)
        orjson.dumps(payload(point))
        encode(request)


def ranking_request(data: bytes) -> None:
    """Decode a request and merge it with another one of the user."""
    for user in merge([RANKING, decode(RankingRequest, data)]):
        encode(user.newest)
        encode(user.repair(NOW))


def user_state(data: bytes) -> None:
    """Decode a state and go on with it."""
    state = loads(data)
    states: States = {"u": state}
    _sent(_planner.events(states, [event(30)], NOW), states)


def store_point(data: bytes) -> None:
    """Read a point's payload and vectors as the store gave them."""
    try:
        record = orjson.loads(data)
    except orjson.JSONDecodeError:  # that the client refuses such an answer is tested with real connections
        raise FreshetError("not JSON") from None
    fields, named = record if isinstance(record, list) and len(record) == 2 else (record, record)
    made = from_record("u", fields, named, DIM)
    if isinstance(made, KnowledgePoint):
        orjson.dumps(payload(made))


def _plain(model: type[BaseModel]) -> Any:
    def run(data: bytes) -> None:
        encode(decode(model, data))

    return run


POINT = KnowledgePoint(
    "u", 3, "m1", np.full((3, DIM), 0.25, np.float16), np.ones(DIM, np.float32), "0f", "drift", 1.7e9, 9.5e8, 12,
    (1, 0, 3), (4, 7), (0.5, 0.25))
OTHERS = {
    AlignmentSample: AlignmentSample(
        user_id="u", history=["i1"], item_id="i2", margin=-1.0, log_wealth=3.0, knowledge_version=1, model_version="m1",
        event_time=1.0),
    CatalogueItem: CatalogueItem(
        item_id="i1", title="a", attributes=["b"], text="c", available=False, labels=["d"], price=1.5),
    Erasure: Erasure(user_id="u", requested_at=1.0),
    UserSeen: UserSeen(user_id="u", allow=["a"], deny=[], keep=True),
    ItemUpdate: ItemUpdate(
        item_id="i1", version=7, about="0f", encoder="e", similar=[Alike(item_id="i2", score=0.5)], caused_at=1.0,
        written_at=1.0),
    ModelUpdate: ModelUpdate(model_version="m1+a", adapter="adapters/a", withdrawn=["m0"], published_at=1.0),
    Recommendation: Recommendation(
        user_id="u", items=[ScoredItem(item_id="i1", score=-1.0)], reference=["i1"], source="fused", reason="event",
        lagrange=1.5, kl=0.1, epsilon=0.1, knowledge_version=1, knowledge_age_s=1.0, knowledge_behind=1,
        model_version="m1", event_time=1.0, count=3, caused_at=1.0, requested_at=1.0, ranked_at=1.0),
}


def decoders() -> list[Decoder]:
    """Return the decoders of messages, states and points; every topic has one."""
    letter = dead_letter("t", 0, 1, "no", value=b"\xff\x00", key=b"k", role="streams", failed_at=NOW)
    _pools.judged.clear()
    made = [
        Decoder("behaviour-events", behaviour_event, EVENTS, share=3),
        Decoder("events of other producers", behaviour_event, SHAPES, share=2),
        Decoder("events in other framings", behaviour_event, RAW, "bytes"),
        Decoder("events framed by a registry", lambda data: behaviour_event(data, REGISTERED), _framed(), "bytes", 2),
        Decoder("schemas of a registry", schema, [json.dumps(one).encode() for one in _AVRO]),
        Decoder("schemas of a registry, Protobuf", file_descriptor, [event_message().DESCRIPTOR.file.serialized_pb],
                "bytes", 0.5),
        Decoder("judgements", judgement, [encode(JUDGEMENT)], share=2),
        Decoder("knowledge-updates", knowledge_update, [encode(UPDATE)], share=2),
        Decoder("knowledge-requests", knowledge_request, [encode(REQUEST)]),
        Decoder("ranking-requests", ranking_request, [encode(RANKING)]),
        Decoder("dead-letters", _plain(TOPICS["dead-letters"].model), [encode(letter)]),
        Decoder("user states", user_state, [BASE, dumps(UserState())], "msgpack", 3),
        Decoder("points of the store", store_point, [orjson.dumps([payload(POINT), vectors(POINT)])], share=2),
    ]
    judgement(encode(JUDGEMENT))
    made.append(Decoder("guard's evidence", pools_kept, [pooled.dumps(_pools)], "msgpack"))
    for model, message in OTHERS.items():
        (name,) = [topic.name for topic in TOPICS.values() if topic.model is model]
        made.append(Decoder(name, _plain(model), [encode(message)]))
    assert set(TOPICS) <= {decoder.name for decoder in made}
    return made
