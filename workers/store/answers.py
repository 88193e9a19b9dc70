"""What the answer of a Qdrant server means: the result, wait and ask again, or do not ask again.

| the server | raised | what the workers do |
|---|---|---|
| does not answer in time, breaks off, sends what is not Qdrant's; 408, 425, 429, 5xx | `StoreUnavailableError` | wait |
| refuses this request: 400, 413, 422 | `StoreRefusedError` | a dead letter for the record that causes it |
| has no such collection: 404 | `AbsentError` | create it, or read nothing |
| already has the collection: 409 | `TakenError` | use it |
| refuses the key, or is no Qdrant: 401, 403, other 3xx and 4xx | `FreshetError` | end with this text |

gRPC's codes are read in the same way.
"""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Callable, Iterator
from email.utils import parsedate_to_datetime
from json import JSONDecodeError
from typing import Any, TypeVar
from urllib.parse import urlsplit

import grpc  # type: ignore[import-untyped]
import httpx
from pydantic import ValidationError
from qdrant_client import QdrantClient
from qdrant_client.common.client_exceptions import QdrantException, ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from schemas.errors import FreshetError, PoisonError, StoreUnavailableError
from schemas.settings import QdrantSettings

log = logging.getLogger(__name__)
T = TypeVar("T")
LONGEST_WAIT_S = 300.0  # a server that asks for a day is asked again after five minutes
# The first server with `update_filter`. Older ones ignore that field of a write: they would overwrite newer knowledge.
OLDEST_SERVER = (1, 16)
DEFAULT_PORT = 6333
NO_QDRANT = "not as Qdrant does: check FRESHET_QDRANT_URL, which is http://host:6333"
LOOPBACK = ("localhost", "127.0.0.1", "::1")

_BUSY, _REFUSED = (408, 425, 429), (400, 413, 422)
_GRPC = grpc.StatusCode
_GRPC_REFUSED = (_GRPC.INVALID_ARGUMENT, _GRPC.OUT_OF_RANGE)
_GRPC_KEY = (_GRPC.UNAUTHENTICATED, _GRPC.PERMISSION_DENIED)


class StoreRefusedError(PoisonError):
    """The server refuses the request for what is in it."""


class AbsentError(FreshetError):
    """The collection does not exist."""


class TakenError(FreshetError):
    """The collection exists already: another process was first."""


def address(location: str) -> str:
    """Return a server's URL in full: the client adds a missing scheme and port without a word.

    Raises:
        FreshetError: it is no such URL.
    """
    if location == ":memory:":
        return location
    shown, given = without_password(location), location if "://" in location else f"http://{location}"
    try:
        parts = urlsplit(given)
        port = parts.port
    except ValueError as error:
        raise FreshetError(f"FRESHET_QDRANT_URL={shown} is not the URL of a server, such as http://host:6333: {error}"
                           ) from error
    why = ("it names no host" if not parts.hostname else
           "it is not http:// or https://" if parts.scheme not in ("http", "https") else
           "leave out what follows the path" if parts.query or parts.fragment else
           f"leave out {parts.path}, which is its page for people" if parts.path.startswith("/dashboard") else "")
    if why:
        raise FreshetError(f"FRESHET_QDRANT_URL={shown} is not the URL of a server, such as http://host:6333: {why}")
    netloc = parts.netloc if port is not None else f"{parts.netloc.rstrip(':')}:{DEFAULT_PORT}"
    return f"{parts.scheme}://{netloc}{parts.path.rstrip('/')}"


def connect(location: str, settings: QdrantSettings, connections: int) -> QdrantClient:
    """Return a client. Nothing is sent yet.

    Args:
        location: a server's URL, or ":memory:" for the client's in-memory implementation (tests only).
        settings: key, protocol and timeout; the client rounds the timeout up to whole seconds.
        connections: at most; half of them are kept open.

    Raises:
        FreshetError: URL or key cannot be used; the text does not contain the key.
    """
    if location == ":memory:":
        return QdrantClient(":memory:")
    key = settings.api_key
    # As a header it would raise an error that quotes it.
    if not (key.isascii() and key.isprintable()):
        raise FreshetError("FRESHET_QDRANT_API_KEY contains a character that no key has, such as a line break or an "
                           "accent; copy it again")
    # The client warns of every key that is not encrypted, also on this machine, and names neither server nor setting.
    warnings.filterwarnings("ignore", message="Api key is used with an insecure connection")
    try:
        host = urlsplit(location).hostname
        if key and location.startswith("http://") and host not in LOOPBACK:
            log.warning("the key of the knowledge store is sent to %s unencrypted; use https", host)
        timeout = math.ceil(settings.timeout_s)
        # Without `limits` the client opens a new connection per call to a server on this machine.
        return QdrantClient(
            url=location, api_key=key or None, prefer_grpc=settings.prefer_grpc, grpc_port=settings.grpc_port,
            timeout=timeout, check_compatibility=False,
            limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections // 2),
            event_hooks={"response": [lambda response: _bound(response, timeout)]})
    except ValueError as error:
        raise FreshetError(f"FRESHET_QDRANT_URL={without_password(location)} is not the URL of a server, such as "
                           f"http://host:6333: {error}") from error


def asked(location: str, action: Callable[[], T]) -> T:
    """Return what one call of a client returns.

    Raises:
        FreshetError: the call failed; see the table above.
    """
    where = f"the knowledge store at {without_password(location)}"
    try:
        return action()
    except ResourceExhaustedResponse as error:
        raise StoreUnavailableError(f"{where} is busy: {error}", _bounded(error.retry_after_s)) from error
    except QdrantException as error:  # Retry-After is a date or a fraction; the client quotes it at the end
        wait = retry_after_s(str(error).rpartition(": ")[2], time.time())
        raise StoreUnavailableError(f"{where} is busy: {error}", wait) from error
    except ResponseHandlingException as error:
        if isinstance(error.source, ValidationError):
            raise StoreUnavailableError(f"{where} answers, but {NO_QDRANT}") from error
        raise StoreUnavailableError(f"{where} does not answer: {_short(error.source)}") from error
    except UnexpectedResponse as error:
        raise _http(where, error) from error
    except grpc.RpcError as error:
        raise _grpc(where, error) from error
    except (JSONDecodeError, UnicodeDecodeError, RecursionError, AssertionError) as error:
        # An answer of status 200 that is not JSON or lacks the result: broken off, or a proxy's page.
        raise StoreUnavailableError(f"{where} answers, but {NO_QDRANT} ({_short(error)})") from error


def retry_after_s(header: str | None, now: float) -> float:
    """Return the seconds that a Retry-After header asks for, bounded; 0 = none, or not readable.

    Args:
        header: seconds, or a date as in RFC 9110.
        now: wall clock, seconds.
    """
    if not header:
        return 0.0
    try:
        return _bounded(float(header))
    except ValueError:
        pass
    try:
        return _bounded(parsedate_to_datetime(header).timestamp() - now)
    except (ValueError, OverflowError):
        return 0.0


def check_version(location: str, version: str) -> None:
    """Check that a server keeps the condition of a write.

    Raises:
        FreshetError: it is older, or does not say.
    """
    where = f"the knowledge store at {without_password(location)}"
    try:
        major, minor = (int(part) for part in version.split(".")[:2])
    except ValueError:
        raise FreshetError(f"{where} gives {version[:40]!r} as its version, not one of Qdrant's; check "
                           "FRESHET_QDRANT_URL") from None
    if (major, minor) < OLDEST_SERVER:
        raise FreshetError(
            f"{where} is Qdrant {version}; Freshet needs 1.16 or newer, since older servers ignore the condition of a "
            "write and would replace newer knowledge with older. Upgrade it (one minor version at a time)")


def without_password(location: str) -> str:
    """Return a URL as it may be shown."""
    return location if "@" not in location else "://".join(
        part.rpartition("@")[2] for part in location.split("://", 1))


def _http(where: str, error: UnexpectedResponse) -> FreshetError:
    status, text = error.status_code or 0, _short(error)
    wait = retry_after_s(error.headers.get("retry-after"), time.time())
    if status >= 500 or status in _BUSY:
        return StoreUnavailableError(f"{where} is busy or fails: {text}", wait)
    if status in _REFUSED:
        return StoreRefusedError(f"{where} refuses the request: {text}")
    if status == 404:
        return AbsentError(f"{where} does not have it: {text}")
    if status == 409:
        return TakenError(f"{where} already has it: {text}")
    if status in (401, 403):
        return _key(where, text)
    return FreshetError(f"{where} does not answer as Qdrant does, check FRESHET_QDRANT_URL: {text}")


def _grpc(where: str, error: grpc.RpcError) -> FreshetError:
    # Errors of calls have `code` and `details`, although their base class does not declare them.
    code = error.code() if callable(getattr(error, "code", None)) else None
    text = f"{code}: {error.details() if callable(getattr(error, 'details', None)) else error}"[:300]
    if code in _GRPC_REFUSED:
        return StoreRefusedError(f"{where} refuses the request: {text}")
    if code is _GRPC.NOT_FOUND:
        return AbsentError(f"{where} does not have it: {text}")
    if code is _GRPC.ALREADY_EXISTS:
        return TakenError(f"{where} already has it: {text}")
    if code in _GRPC_KEY:
        return _key(where, text)
    if code is _GRPC.UNIMPLEMENTED:
        return FreshetError(f"{where} does not know a call, check its version and FRESHET_QDRANT_URL: {text}")
    return StoreUnavailableError(f"{where} is busy or fails: {text}")


def _key(where: str, text: str) -> FreshetError:
    return FreshetError(f"{where} refuses the key or its rights; set FRESHET_QDRANT_API_KEY or "
                        f"FRESHET_QDRANT_API_KEY_FILE ({text})")


def _bounded(seconds: float) -> float:
    return min(max(0.0, seconds), LONGEST_WAIT_S)  # in this order NaN is 0


def _short(error: Any) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


class _Bounded(httpx.SyncByteStream):
    """The body of an answer, which raises ReadTimeout when it is not complete in time.

    httpx bounds each wait for the next bytes; a server that sends one byte a second would hold its caller for hours.
    """

    def __init__(self, stream: Any, seconds: float, request: httpx.Request) -> None:
        self._stream, self._seconds, self._request = stream, seconds, request
        self._ends = time.monotonic() + seconds

    def __iter__(self) -> Iterator[bytes]:
        for part in self._stream:
            yield part
            if time.monotonic() > self._ends:
                raise httpx.ReadTimeout(f"the answer is not complete after {self._seconds:g} s", request=self._request)

    def close(self) -> None:
        """Close the connection."""
        self._stream.close()


def _bound(response: httpx.Response, seconds: float) -> None:
    response.stream = _Bounded(response.stream, seconds, response.request)
