"""The schema registry over HTTP: fetches schemas before a batch is read, and waits for a registry that is away.

confluent-kafka has a client, too. It asks in the midst of decoding a record, raises where the registry is away, and
needs seven more packages.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import aiohttp
import orjson

from schemas.errors import FreshetError, SettingsError
from schemas.reading.framing import Frame, SchemaId, Schemas, Written
from schemas.settings import RegistrySettings

log = logging.getLogger("freshet.streams")

FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 10.0
LOOK_S = 0.2
UNKNOWN_FOR_S = 60.0  # before a schema that the registry did not know is asked for again
AT_ONCE = 8  # questions
LARGEST = 4 * 2**20  # bytes of an answer
MOST_IMPORTS = 200  # of a schema, theirs included
_URL = "FRESHET_REGISTRY_URL"


class AwayError(Exception):
    """The registry gave no answer to use; it may later."""


class RefusedError(AwayError):
    """The registry refuses this client, or it is none."""


class _NoSchemaError(Exception):
    """The registry's answer: there is no such schema, or it cannot be used."""


class SchemaRegistry:
    """Asks the registry of the settings.

    Args:
        schemas: gets what is found.
        first_wait_s: before the second try; doubles up to `LONGEST_WAIT_S`.

    Raises:
        SettingsError: the URL or the file of certificates cannot be used.
    """

    def __init__(self, settings: RegistrySettings, schemas: Schemas, first_wait_s: float = FIRST_WAIT_S) -> None:
        self._urls = [_checked(url.strip()) for url in settings.url.split(",") if url.strip()]
        if not self._urls:
            raise SettingsError(f"{_URL} is not set")
        self._settings = settings
        self._schemas = schemas
        self._first_wait_s = first_wait_s
        self._tls = _context(settings)
        self._headers = {"Accept": "application/vnd.schemaregistry.v1+json, application/json"}
        if ":" in settings.username:
            raise SettingsError("FRESHET_REGISTRY_USERNAME holds a colon, which basic authentication cannot send")
        if settings.username:
            self._headers["Authorization"] = aiohttp.encode_basic_auth(settings.username, settings.password)

    async def learn(
        self, frames: Iterable[Frame], stop: Callable[[], bool] = lambda: False,
        waits: Callable[[str], None] = lambda text: None, moved: Callable[[], None] = lambda: None,
    ) -> bool:
        """Fetch the schemas of these records that are not known; wait for as long as the registry is away.

        Args:
            stop: asked before each try; true = give up.
            waits: told why the registry cannot be asked at each try, and "" once it answers.
            moved: called for each answer.

        Returns:
            Whether all schemas are known now, or known not to be there.
        """
        wanted = self._schemas.unknown(frames, time.monotonic())
        if not wanted:
            return True
        wait_s, waited = self._first_wait_s, False
        async with self._session() as session:
            while not stop():
                try:
                    await self._fetch(session, wanted, moved)
                except AwayError as error:
                    waited = True
                    waits(str(error))
                    log.warning("%s; waiting for it", error)
                    over = time.monotonic() + wait_s
                    while time.monotonic() < over and not stop():  # a rebalance must not wait for the registry
                        await asyncio.sleep(min(wait_s, LOOK_S))
                    wait_s = min(2 * wait_s, LONGEST_WAIT_S)
                    wanted = self._schemas.unknown([Frame(schema, b"") for schema in wanted], time.monotonic())
                else:
                    if waited:
                        waits("")
                        log.info("the schema registry answers again")
                    return True
        return False

    async def check(self) -> None:
        """Ask the registry anything.

        Raises:
            RefusedError: it refuses this client, or it is no schema registry.
            AwayError: it does not answer.
        """
        async with self._session() as session:
            with suppress(_NoSchemaError):  # an old registry has no such path, and says so in its own form
                await self._ask(session, "/schemas/types")

    def _session(self) -> aiohttp.ClientSession:
        timeout = aiohttp.ClientTimeout(total=self._settings.timeout_s)
        return aiohttp.ClientSession(timeout=timeout, headers=self._headers)

    async def _fetch(
        self, session: aiohttp.ClientSession, wanted: Sequence[SchemaId], moved: Callable[[], None],
    ) -> None:
        """Ask for schemas; what was found is kept also where the registry goes away in the midst of it."""
        lacking = await self._fetch_once(session, wanted, moved)
        if lacking:
            # A registry's follower may learn of a schema after its first records were written.
            await asyncio.sleep(self._first_wait_s)
            lacking = await self._fetch_once(session, list(lacking), moved)
            for schema, reason in lacking.items():
                self._schemas.learn(schema, reason, time.monotonic() + UNKNOWN_FOR_S)

    async def _fetch_once(
        self, session: aiohttp.ClientSession, wanted: Sequence[SchemaId], moved: Callable[[], None],
    ) -> dict[SchemaId, str]:
        """Return the schemas that the registry does not have, with the reasons."""
        lacking: dict[SchemaId, str] = {}
        limit = asyncio.Semaphore(AT_ONCE)

        async def one(schema: SchemaId) -> None:
            async with limit:
                try:
                    written = await self._written(session, schema)
                except _NoSchemaError as error:
                    lacking[schema] = f"the schema registry has no schema {schema} to use: {error}"
                else:
                    self._schemas.learn(schema, written, time.monotonic() + UNKNOWN_FOR_S)
                moved()

        results = await asyncio.gather(*map(one, wanted), return_exceptions=True)
        for error in results:
            if error is not None:
                raise error
        return lacking

    async def _written(self, session: aiohttp.ClientSession, schema: SchemaId) -> Written:
        path = f"/schemas/ids/{schema}" if isinstance(schema, int) else f"/schemas/guids/{schema}"
        answer = await self._ask(session, path, {"format": "serialized"})
        kind: Any = answer.get("schemaType") or "AVRO"
        if kind not in ("AVRO", "PROTOBUF", "JSON"):
            raise _NoSchemaError(f"its type {str(kind)[:40]!r} is not known")
        imports: dict[str, str] = {}
        if kind != "JSON":
            await self._collect(session, answer, imports, set())
        return Written(kind, answer["schema"], tuple(imports.items()))

    async def _collect(
        self, session: aiohttp.ClientSession, answer: Mapping[str, Any], imports: dict[str, str], seen: set[str],
    ) -> None:
        """Add the schemas that one imports to `imports`, each behind those that it imports itself."""
        for reference in answer.get("references") or ():
            try:
                name, subject = str(reference["name"]), quote(str(reference["subject"]), safe="")
                version = int(reference["version"])
            except (KeyError, TypeError, ValueError):
                raise _NoSchemaError("a reference without name, subject and version") from None
            if name in seen:
                continue
            if len(seen) >= MOST_IMPORTS:
                raise _NoSchemaError(f"it imports more than {MOST_IMPORTS} schemas")
            seen.add(name)
            # `deleted`: a subject that was deleted softly is still what its records were written by.
            imported = await self._ask(session, f"/subjects/{subject}/versions/{version}",
                                       {"format": "serialized", "deleted": "true"})
            await self._collect(session, imported, imports, seen)
            imports[name] = imported["schema"]

    async def _ask(
        self, session: aiohttp.ClientSession, path: str, query: Mapping[str, str] | None = None,
    ) -> Mapping[str, Any]:
        """Return a schema, from the first server that answers; {} for an answer that is a list."""
        errors: list[AwayError] = []
        for url in self._urls:
            try:
                return await self._ask_one(session, url, path, query)
            except AwayError as error:
                errors.append(error)
        raise errors[0]

    async def _ask_one(
        self, session: aiohttp.ClientSession, url: str, path: str, query: Mapping[str, str] | None,
    ) -> Mapping[str, Any]:
        try:
            async with session.get(url + path, params=query, ssl=self._tls) as response:
                content = bytearray()
                async for chunk in response.content.iter_chunked(65_536):
                    content += chunk
                    if len(content) > LARGEST:
                        raise _NoSchemaError(f"an answer of more than {LARGEST >> 20} MiB")
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            what = f"within {self._settings.timeout_s:g} s" if isinstance(error, TimeoutError) else f"({_short(error)})"
            raise AwayError(f"the schema registry {url} does not answer {what}") from None
        try:
            answer = orjson.loads(content)
        except orjson.JSONDecodeError:
            answer = None
        status = response.status
        if status in (401, 403):
            raise RefusedError(f"the schema registry {url} refuses user {self._settings.username!r} (HTTP {status}); "
                               "check FRESHET_REGISTRY_USERNAME and FRESHET_REGISTRY_PASSWORD_FILE")
        if status == 200 and isinstance(answer, list):
            return {}
        if status == 200 and isinstance(answer, dict) and isinstance(answer.get("schema"), str):
            return answer
        later = status >= 500 or status in (408, 429)
        # 40403 and the like are about the schema. A bare 404 is about the path: another service, or a registry that is
        # too old for it.
        if status >= 400 and not later and isinstance(answer, dict) and "error_code" in answer and (
                answer["error_code"] != 404 or not path.startswith("/schemas/ids/")):
            raise _NoSchemaError(" ".join(str(answer.get("message") or f"HTTP {status}").split())[:200])
        if not later:
            raise RefusedError(f"{url} answers, but not as a schema registry (HTTP {status} for {path}); check {_URL}")
        raise AwayError(f"the schema registry {url} answers HTTP {status}")


async def check_registry(settings: RegistrySettings) -> None:
    """Raise FreshetError if the registry of the settings refuses this client; one that is away is waited for later."""
    if settings.url:
        try:
            await SchemaRegistry(settings, Schemas()).check()
        except RefusedError as error:
            raise FreshetError(str(error)) from None
        except AwayError as error:
            log.warning("%s", error)


def _checked(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SettingsError(f"{_URL} must be http://host:8081 or https://host, not {parts.scheme or 'a text'}:…")
    if parts.username or parts.password:
        raise SettingsError(
            f"{_URL} holds a password; set FRESHET_REGISTRY_USERNAME and FRESHET_REGISTRY_PASSWORD_FILE")
    return url.rstrip("/")


def _context(settings: RegistrySettings) -> ssl.SSLContext | bool:
    if not settings.ssl_cafile:
        return True
    try:
        Path(settings.ssl_cafile).read_bytes()
        return ssl.create_default_context(cafile=settings.ssl_cafile)
    except ssl.SSLError:
        raise SettingsError(f"FRESHET_REGISTRY_SSL_CAFILE: {settings.ssl_cafile} holds no certificate in PEM form"
                            ) from None
    except OSError as error:
        raise SettingsError(
            f"FRESHET_REGISTRY_SSL_CAFILE: {settings.ssl_cafile} cannot be read: {error.strerror}") from None


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
