"""Errors as `application/problem+json` (RFC 9457): one kind of body for whatever goes wrong under `/v1`."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus

import orjson
from starlette.responses import Response

MEDIA_TYPE = "application/problem+json"


def problem(status: int, detail: str, headers: Mapping[str, str] | None = None) -> Response:
    """Return an answer that says what is wrong.

    Args:
        detail: one sentence that says what to do; no secret, nothing of the machine.
    """
    body = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail}
    return Response(orjson.dumps(body), status, dict(headers or {}), MEDIA_TYPE)
