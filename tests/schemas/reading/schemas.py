"""Schemas that a producer of events may have: Avro, and Protobuf files built by hand, so that no compiler is needed."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, timestamp_pb2

NOON = 1706702400.0  # 2024-01-31T12:00:00Z
NOON_UTC = datetime(2024, 1, 31, 12, tzinfo=UTC)

EVENT: dict[str, Any] = {"type": "record", "name": "Event", "namespace": "shop", "fields": [
    {"name": "user_id", "type": "string"}, {"name": "item_id", "type": "long"},
    {"name": "event_time", "type": {"type": "long", "logicalType": "timestamp-millis"}},
    {"name": "event_type", "type": ["null", "string"], "default": None}]}

_F = descriptor_pb2.FieldDescriptorProto


def _fields(message: Any, **fields: Any) -> None:
    for number, (name, kind) in enumerate(fields.items(), 1):
        label = _F.LABEL_REPEATED if isinstance(kind, list) else _F.LABEL_OPTIONAL
        one = kind[0] if isinstance(kind, list) else kind
        if isinstance(one, str):
            message.field.add(name=name, number=number, type=_F.TYPE_MESSAGE, type_name=one, label=label)
        else:
            message.field.add(name=name, number=number, type=one, label=label)


def _files() -> Any:
    people = descriptor_pb2.FileDescriptorProto(name="shop/people.proto", package="shop", syntax="proto3")
    _fields(people.message_type.add(name="Buyer"), id=_F.TYPE_INT64)
    file = descriptor_pb2.FileDescriptorProto(
        name="shop/events.proto", package="shop", syntax="proto3",
        dependency=["google/protobuf/timestamp.proto", "shop/people.proto"])
    _fields(file.message_type.add(name="Event"), user_id=_F.TYPE_STRING, item_id=_F.TYPE_INT64,
            event_time=".google.protobuf.Timestamp", event_type=_F.TYPE_STRING)
    order = file.message_type.add(name="Order")
    _fields(order, buyer=".shop.Buyer", lines=[".shop.Order.Line"])
    _fields(order.nested_type.add(name="Line"), user_id=_F.TYPE_STRING, item_id=_F.TYPE_STRING, at=_F.TYPE_DOUBLE)
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(timestamp_pb2.DESCRIPTOR.serialized_pb)
    pool.AddSerializedFile(people.SerializeToString())
    pool.AddSerializedFile(file.SerializeToString())
    return pool


_POOL = _files()
_Event = message_factory.GetMessageClass(_POOL.FindMessageTypeByName("shop.Event"))
_Order = message_factory.GetMessageClass(_POOL.FindMessageTypeByName("shop.Order"))


def event_message(**fields: Any) -> Any:
    """Return an event as a Protobuf message."""
    message = _Event(**({"user_id": "u", "item_id": 7, "event_type": "view"} | fields))
    message.event_time.FromDatetime(NOON_UTC)
    return message


def order_message() -> Any:
    """Return an order of two lines by buyer 9."""
    message = _Order()
    message.buyer.id = 9
    for user, item in (("u", "i"), ("v", "j")):
        message.lines.add(user_id=user, item_id=item, at=NOON)
    return message
