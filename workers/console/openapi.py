"""The OpenAPI document of the HTTP interface, from the models of its answers."""

from __future__ import annotations

from typing import Any

import orjson
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from workers.console.answers import (
    HealthAnswer,
    ItemAnswer,
    KnowledgeAnswer,
    ProblemAnswer,
    RecommendationsAnswer,
    StateAnswer,
)

# Path → (answer, what it is, names of its parameters).
PATHS: dict[str, tuple[type[BaseModel], str, str]] = {
    "/v1/users/{id}/recommendations": (RecommendationsAnswer, "What to show a user now, and why", "user"),
    "/v1/users/{id}/knowledge": (KnowledgeAnswer, "The versions of a user's knowledge", "user"),
    "/v1/users/{id}/state": (StateAnswer, "A user's history, drift and trust", "user"),
    "/v1/items/{id}": (ItemAnswer, "An item, its neighbours and recent takers", "item"),
    "/v1/health": (HealthAnswer, "Whether this instance can answer", ""),
}
_REF = "#/components/schemas/{model}"
_PROBLEMS = {
    "400": "the path is not percent-encoded UTF-8", "401": "a key is needed", "404": "not known",
    "503": "the topics are being read since the start; try again after Retry-After seconds"}


def document() -> bytes:
    """Return the document, OpenAPI 3.1, as JSON."""
    models: list[type[BaseModel]] = [*(model for model, _, _ in PATHS.values()), ProblemAnswer]
    _, schemas = models_json_schema([(model, "serialization") for model in models], ref_template=_REF)
    return orjson.dumps({
        "openapi": "3.1.0",
        "info": {
            "title": "Freshet", "version": "1",
            "description": "Reads what Freshet knows of users and items. Every answer has an ETag; If-None-Match gives "
                           "304 while nothing has changed."},
        "paths": {path: {"get": _operation(*row)} for path, row in PATHS.items()},
        "components": {
            "schemas": schemas["$defs"],
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"},
                                "key": {"type": "apiKey", "in": "header", "name": "X-Api-Key"}}},
    }, option=orjson.OPT_INDENT_2)


def _operation(model: type[BaseModel], summary: str, of: str) -> dict[str, Any]:
    schema = {"$ref": _REF.format(model=model.__name__)}
    good: dict[str, Any] = {"description": summary, "content": {"application/json": {"schema": schema}}}
    out: dict[str, Any] = {"summary": summary, "operationId": model.__name__, "responses": {"200": good}}
    if not of:
        out["responses"]["503"] = good | {"description": "not yet"}
        return out
    bad = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/ProblemAnswer"}}}
    good["headers"] = {"ETag": {"schema": {"type": "string"}}}
    out["parameters"] = [
        {"name": "id", "in": "path", "required": True, "schema": {"type": "string"},
         "description": f"the {of}'s id, percent-encoded"},
        {"name": "If-None-Match", "in": "header", "schema": {"type": "string"}, "description": "an ETag"}]
    out["security"] = [{}, {"bearer": []}, {"key": []}]
    out["responses"] |= {"304": {"description": "it has not changed"}} | {
        status: {"description": text, "content": bad} for status, text in _PROBLEMS.items()}
    return out
