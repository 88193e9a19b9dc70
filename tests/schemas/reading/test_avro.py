"""Schemas by which a few bytes could stand for any number of values, or end the process, are refused or bounded."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from typing import Any

import pytest

from schemas.reading.avro import avro_decoder


def decoder(schema: Any, *references: tuple[str, Any]) -> Any:
    return avro_decoder(json.dumps(schema), [(name, json.dumps(one)) for name, one in references])


def record(name: str, *types: Any) -> dict[str, Any]:
    return {"type": "record", "name": name,
            "fields": [{"name": f"f{number}", "type": kind} for number, kind in enumerate(types)]}


def test_a_schema_that_contains_itself_reads_short_records_only() -> None:
    read = decoder(record("N", ["null", "N"]))
    assert read(b"\x02\x02\x00") == {"f0": {"f0": {"f0": None}}}
    with pytest.raises(ValueError, match="5001 bytes; by a schema that contains itself at most"):
        read(b"\x02" * 5000 + b"\x00")  # fastavro's C code dies of this one


@pytest.mark.parametrize("schema", [
    record("A", {"type": "array", "items": record("B", ["null", "A"])}),
    record("A", record("B", {"type": "map", "values": ["null", "A", "B"]})),
    [record("A", {"type": "array", "items": "A"}), "null"]])
def test_it_is_found_however_it_does_so(schema: Any) -> None:
    with pytest.raises(ValueError, match="contains itself"):
        decoder(schema)(b"\x02" * 2000)


def test_one_that_uses_a_type_twice_does_not() -> None:
    read = decoder(record("A", record("B", "int"), "B", {"type": "array", "items": "B"}))
    assert len(read(b"\x02\x02" + b"\x80\x20" + b"\x02" * 2048 + b"\x00")["f2"]) == 2048


@pytest.mark.parametrize("items", [
    "null", record("E"), record("E", "null", record("F")), {"type": "fixed", "name": "Z", "size": 0}])
def test_elements_without_a_byte_are_refused(items: Any) -> None:
    with pytest.raises(ValueError, match="without a byte"):
        decoder(record("A", ["null", {"type": "array", "items": items}]))


def test_records_that_double_at_every_level_are_refused() -> None:
    schema: Any = record("R0")
    for level in range(1, 40):
        schema = record(f"R{level}", schema, f"R{level - 1}")
    with pytest.raises(ValueError, match="more than 2000 fields"):
        decoder(schema)


def test_a_fixed_without_a_size_is_refused() -> None:
    for size in (-1, "i1", None, True):
        with pytest.raises(ValueError, match="without a size"):
            decoder(record("A", {"type": "fixed", "name": "F", "size": size}))


def test_a_record_that_never_ends_is_refused() -> None:
    with pytest.raises(ValueError, match="more than 2000 fields"):
        decoder(record("A", "A"))


def test_types_are_found_in_references_with_and_without_a_namespace() -> None:
    read = decoder(record("A", "Item", ["null", "shop.Price"]), ("Item", record("Item", "long")),
                   ("shop.Price", record("shop.Price", "double")))
    assert read(b"\x0e\x00") == {"f0": {"f0": 7}, "f1": None}
    assert decoder({"type": "array", "items": "Item"}, ("Item", record("Item", "long")))(b"\x02\x0e\x00") == [{"f0": 7}]
    assert decoder("string")(b"\x02u") == "u"


@pytest.mark.parametrize(("kind", "payload", "value"), [
    ({"type": "long", "logicalType": "timestamp-millis"}, b"\x02", datetime(1970, 1, 1, 0, 0, 0, 1000, UTC)),
    ({"type": "long", "logicalType": "timestamp-nanos"}, b"\xd0\x0f", datetime(1970, 1, 1, 0, 0, 0, 1, UTC)),
    ({"type": "long", "logicalType": "timestamp-millis"}, b"\xfe" + b"\xff" * 8 + b"\x01", 2**63 - 1),  # "for ever"
    ({"type": "int", "logicalType": "date"}, b"\x02", date(1970, 1, 2)),
    ({"type": "int", "logicalType": "date"}, b"\xfe\xff\xff\xff\x0f", 2**31 - 1),
    ({"type": "int", "logicalType": "time-millis"}, b"\xfe\xff\xff\xff\x0f", 2**31 - 1),
    ({"type": "string", "logicalType": "uuid"}, b"\x02u", "u"),
    ({"type": "bytes", "logicalType": "decimal", "precision": 4, "scale": 1}, b"\x02\x0f", 1.5),
    ({"type": "bytes", "logicalType": "decimal", "precision": 4, "scale": 1}, b"\x02\xf6", -1),
    ({"type": "bytes", "logicalType": "decimal", "precision": 4}, b"\x42" + b"\x7f" * 33, b"\x7f" * 33)])
def test_logical_types_never_cost_an_event(kind: Any, payload: bytes, value: Any) -> None:
    assert decoder(kind)(payload) == value
