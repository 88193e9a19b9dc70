"""The OpenAPI document describes what is answered: each answer is checked against it."""

from __future__ import annotations

import re

import pytest

from tests.workers.console.test_api import client
from workers.console.openapi import PATHS

DOCUMENT = client().get("/v1/openapi.json").json()
SCHEMAS = DOCUMENT["components"]["schemas"]


def check(value, schema, where="body"):
    """The part of JSON Schema that the document uses."""
    if ref := schema.get("$ref"):
        return check(value, SCHEMAS[ref.removeprefix("#/components/schemas/")], where)
    if options := schema.get("anyOf"):
        problems = []
        for option in options:
            try:
                return check(value, option, where)
            except AssertionError as error:
                problems.append(str(error))
        raise AssertionError(f"{where}: none of {problems}")
    kind = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool,
            "null": type(None), None: object}[schema.get("type")]
    assert isinstance(value, kind), f"{where}: {value!r} is no {schema['type']}"
    if isinstance(value, list):
        for number, one in enumerate(value):
            check(one, schema["items"], f"{where}[{number}]")
    if "properties" in schema:
        assert set(schema.get("required", ())) <= set(value) <= set(schema["properties"]), where
        for name, one in value.items():
            check(one, schema["properties"][name], f"{where}.{name}")
    return None


@pytest.mark.parametrize("path", sorted(PATHS))
def test_answers_are_as_described(path):
    web = client()
    good = DOCUMENT["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
    name = "u1" if "users" in path else "i1"
    answer = web.get(path.replace("{id}", name))
    assert answer.status_code == 200
    check(answer.json(), good)
    if "{id}" in path:
        bad = DOCUMENT["paths"][path]["get"]["responses"]["404"]["content"]["application/problem+json"]["schema"]
        check(web.get(path.replace("{id}", "nobody")).json(), bad)


def test_the_document_is_closed_and_every_field_that_is_no_name_is_explained():
    refs = set(re.findall(r'"#/components/schemas/(\w+)"', client().get("/v1/openapi.json").text))
    assert refs == set(SCHEMAS)
    assert DOCUMENT["openapi"].startswith("3.1")
    assert all(schema.get("description") for schema in SCHEMAS.values())
    assert len({one["get"]["operationId"] for one in DOCUMENT["paths"].values()}) == len(PATHS)


def test_a_body_that_is_not_as_described_is_noticed():
    with pytest.raises(AssertionError, match="count"):
        check(client().get("/v1/users/u1/state").json() | {"count": "9"}, {"$ref": "#/components/schemas/StateAnswer"})
