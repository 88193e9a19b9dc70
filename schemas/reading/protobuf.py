"""Protobuf payloads to plain data, by Google's protobuf: field names as in the file, moments as ISO 8601 text.

A field of a number that is not marked `optional` and holds 0 is, on the wire, a field that was not set; so is an empty
text. Ids of 0 therefore count as missing there: Freshet does not merge everybody without an id into user 0.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Sequence
from typing import Any

from google.protobuf import (
    any_pb2,
    api_pb2,
    descriptor_pb2,
    descriptor_pool,
    duration_pb2,
    empty_pb2,
    field_mask_pb2,
    json_format,
    message_factory,
    source_context_pb2,
    struct_pb2,
    timestamp_pb2,
    type_pb2,
    wrappers_pb2,
)

_ROOT = "freshet"  # name of the schema's file; the registry gives none
_KNOWN = {module.DESCRIPTOR.name: module.DESCRIPTOR.serialized_pb for module in (
    any_pb2, api_pb2, descriptor_pb2, duration_pb2, empty_pb2, field_mask_pb2, source_context_pb2, struct_pb2,
    timestamp_pb2, type_pb2, wrappers_pb2)}
_DEEPEST = 32  # messages defined within messages
_PLACES = 100  # of them are kept, since each has a class


def protobuf_decoder(text: str, references: Sequence[tuple[str, str]] = ()) -> Callable[[bytes], Any]:
    """Return the decoder of the messages of a file.

    Args:
        text: the file's descriptor, serialized, in base64.
        references: (import path, descriptor) of the files it imports, those first that others import.

    Raises:
        ValueError: it is no descriptor, or a type it uses is not there.
    """
    files = {name: _file(name, content) for name, content in references}
    root = _file(_ROOT, text)
    pool = descriptor_pool.DescriptorPool()
    try:
        added: set[str] = set()
        for one in (*files.values(), root):
            _add(pool, one, files, added)
        there = list(pool.FindFileByName(_ROOT).message_types_by_name.values())
    except (TypeError, KeyError) as error:  # the pool names the type or file that is missing
        raise ValueError(f"Protobuf: {' '.join(str(error).split())[:200]}") from None
    classes: dict[tuple[int, ...], Any] = {}

    def message_class(places: tuple[int, ...]) -> Any:
        found = classes.get(places)
        if found is None:
            inner, message = there, None
            for place in places:
                if place >= len(inner):
                    raise ValueError(f"Protobuf: the file has no message {list(places)}")
                message = inner[place]
                inner = list(message.nested_types)
            found = message_factory.GetMessageClass(message)
            if len(classes) < _PLACES:
                classes[places] = found
        return found

    def decode(payload: bytes) -> Any:
        places, start = _places(payload)
        kind = message_class(places)
        try:
            message = kind.FromString(payload[start:])
            return json_format.MessageToDict(message, preserving_proto_field_name=True, descriptor_pool=pool)
        except Exception as error:  # DecodeError, and what a moment out of range or an unknown `Any` raises
            raise ValueError(f"Protobuf ({type(error).__name__})") from None

    return decode


def _file(name: str, text: str) -> descriptor_pb2.FileDescriptorProto:
    try:
        file = descriptor_pb2.FileDescriptorProto.FromString(base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError):
        raise ValueError("Protobuf: the registry did not answer format=serialized with a descriptor") from None
    except Exception as error:
        raise ValueError(f"Protobuf: no descriptor ({type(error).__name__})") from None
    file.name = name
    return file


def _add(
    pool: descriptor_pool.DescriptorPool, file: descriptor_pb2.FileDescriptorProto,
    files: dict[str, descriptor_pb2.FileDescriptorProto], added: set[str],
) -> None:
    """Add a file to the pool, after what it imports. A file that nobody has is empty: most hold only options."""
    if file.name in added:
        return
    added.add(file.name)
    for name in file.dependency:
        if name in files:
            needed = files[name]
        elif name in _KNOWN:
            needed = descriptor_pb2.FileDescriptorProto.FromString(_KNOWN[name])
        else:
            needed = descriptor_pb2.FileDescriptorProto(name=name)
        _add(pool, needed, files, added)
    pool.AddSerializedFile(file.SerializeToString())


def _places(payload: bytes) -> tuple[tuple[int, ...], int]:
    """Return the place of the message in its file (indexes from outer to inner), and where its bytes begin."""
    count, at = _varint(payload, 0)
    if count == 0:  # the first message, by far the most frequent, in short
        return (0,), at
    if not 0 < count <= _DEEPEST:
        raise ValueError("Protobuf: no place of a message")
    places = []
    for _ in range(count):
        place, at = _varint(payload, at)
        if place < 0:
            raise ValueError("Protobuf: no place of a message")
        places.append(place)
    return tuple(places), at


def _varint(payload: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 35, 7):
        if at >= len(payload):
            break
        byte = payload[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return (value >> 1) ^ -(value & 1), at
    raise ValueError("Protobuf: no place of a message")
