"""A language model behind an OpenAI-compatible server: vLLM, SGLang, llama.cpp, Ollama, or a hosted one.

| the server | what happens |
|---|---|
| answers late, in part or not as one; 408, 409, 425, 429, 5xx | it is asked again, not before Retry-After |
| cannot be reached at all, from the start | the run ends |
| the same, after all tries | the question is left open; a few such in a row end the run |
| 400, 413, 422 | the question is refused, the next ones are asked |
| 401, 402, 403, 404, no quota left, others | the run ends with a text that says what to set |
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any
from urllib.parse import urlsplit

import httpx
import orjson
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from models.data.texts import clean
from schemas.errors import SettingsError
from schemas.settings import WriterSettings
from workers.store.answers import retry_after_s
from workers.writing.provider import CHARACTERS_PER_TOKEN, Answer, Asked, ProviderError
from workers.writing.spending import Pace, Spending

MOST_BYTES = 4 * 2**20  # of an answer; 4,096 tokens are 20 kB
MOST_TEXT = 50_000  # characters kept of an answer
OPEN_IN_A_ROW = 5  # questions without an answer in a row, after all tries, that end the run
REFUSED_IN_A_ROW = 20  # refused questions in a row, the first of the run, that end it: the request itself is wrong
_AGAIN, _REFUSED = (408, 409, 425, 429), (400, 413, 422)


class _AgainError(Exception):
    """The same request may succeed later."""

    def __init__(self, text: str, after_s: float = 0.0) -> None:
        super().__init__(text)
        self.after_s = after_s


class _QuestionRefusedError(Exception):
    """The server refuses this question."""


class ServerProvider:
    """A `Provider` that asks a server, several questions at a time.

    Args:
        settings: where it is, and how much it may be asked.

    Raises:
        SettingsError: URL, model, key or parameters cannot be used; the text never has the key.
    """

    def __init__(self, settings: WriterSettings) -> None:
        self._settings = settings
        self._url = _address(settings.url)
        if not settings.model:
            raise SettingsError("FRESHET_WRITER_MODEL is empty: set it to the name of a model that the server has")
        key = settings.api_key
        if not (key.isascii() and key.isprintable()):  # as a header it would raise an error that quotes it
            raise SettingsError("FRESHET_WRITER_API_KEY contains a character that no key has, such as a line break")
        self._more = _parameters(settings.parameters)
        self.model, self.about = settings.model, f"{settings.model} at {self._url}"
        self.spending = Spending(
            settings.most_tokens or None, settings.most_cost, settings.price_read, settings.price_written)
        self._pace = Pace(settings.requests_per_minute, time.monotonic)
        self._stop = threading.Event()
        self._reached = False  # whether it ever answered
        self._client = httpx.Client(
            headers={"Authorization": f"Bearer {key}"} if key else {}, timeout=settings.timeout_s,
            limits=httpx.Limits(max_connections=settings.concurrency))

    def cost(self, read: float, written: float) -> float | None:
        """See `Provider.cost`; not known where no price is set."""
        priced = self._settings.price_read or self._settings.price_written
        return self.spending.cost(read, written) if priced else None

    def answers(self, asked: Sequence[Asked]) -> Iterator[Answer]:
        """See `Provider.answers`."""
        self._stop.clear()
        left, running, ended = iter(asked), set[Future[Answer]](), None
        open_, refused, last = 0, 0, ""
        with ThreadPoolExecutor(self._settings.concurrency, thread_name_prefix="writer") as pool:
            try:
                while True:
                    while ended is None and len(running) < self._settings.concurrency:
                        if (question := next(left, None)) is None:
                            break
                        running.add(pool.submit(self._ask, question))
                    if not running:
                        break
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        try:
                            answer = future.result()
                        except ProviderError as error:  # those that run may still answer; then it ends
                            ended = ended or error
                            continue
                        last = answer.refused or last
                        open_ = 0 if answer.final else open_ + 1
                        refused = -1 if not answer.refused or refused < 0 else refused + answer.final
                        yield answer
                        if open_ >= OPEN_IN_A_ROW or refused >= REFUSED_IN_A_ROW:
                            ended = ended or ProviderError(
                                f"{self.about} answered none of the last {max(open_, refused)} questions: {last}")
            finally:
                self._stop.set()  # ends the waits of those that run
        if ended is not None:
            raise ended

    def _ask(self, asked: Asked) -> Answer:
        """Return the answer to a question, after as many tries as the settings allow."""
        self.spending.reserve(asked.estimate, asked.tokens)
        read = written = 0
        try:
            retrying = Retrying(
                stop=stop_after_attempt(1 + self._settings.retries), wait=_pause, sleep=self._sleep,
                retry=retry_if_exception_type(_AgainError), reraise=True)
            text, cut, read, written = retrying(self._try, asked)
        except _AgainError as error:
            return Answer(asked.key, "", self.model, refused=str(error), final=False)
        except _QuestionRefusedError as error:
            return Answer(asked.key, "", self.model, refused=str(error))
        finally:
            cost = self.spending.settle(asked.estimate, asked.tokens, read, written)
        return Answer(asked.key, text, self.model, read, written, cost, cut)

    def _sleep(self, seconds: float) -> None:
        self._stop.wait(seconds)

    def _try(self, asked: Asked) -> tuple[str, bool, int, int]:
        """Return text, whether it was cut, and tokens read and written, of one request."""
        self._sleep(self._pace.wait())
        if self._stop.is_set():
            raise ProviderError("stopped")
        body = {
            "model": self.model, "max_tokens": asked.tokens, "temperature": 0,
            "messages": [{"role": "system", "content": asked.system}, {"role": "user", "content": asked.user}],
        } | self._more
        try:
            status, headers, content = self._post({name: value for name, value in body.items() if value is not None})
        except httpx.ConnectError as error:
            if not self._reached:
                raise ProviderError(f"{self.about} cannot be reached: {self._plain(error)}") from None
            raise _AgainError(f"no answer: {self._plain(error)}") from None
        except (httpx.TransportError, httpx.DecodingError) as error:
            raise _AgainError(f"no answer: {self._plain(error)}") from None  # the cause holds the request and its key
        self._reached = True
        if status != 200:
            raise self._error(status, headers, content)
        try:
            found = orjson.loads(content)
            choice = found["choices"][0]
            text = choice["message"]["content"] or ""
            if not isinstance(text, str):
                raise TypeError("the content is no text")
        except (orjson.JSONDecodeError, KeyError, IndexError, TypeError) as error:
            raise _AgainError(f"not the answer of a chat completion: {self._plain(error)}") from None
        used = found.get("usage") if isinstance(found.get("usage"), dict) else {}
        read = _count(used.get("prompt_tokens"), asked.estimate)
        written = _count(used.get("completion_tokens"), round(len(text) / CHARACTERS_PER_TOKEN))
        return text[:MOST_TEXT], choice.get("finish_reason") == "length", read, written

    def _post(self, body: dict[str, Any]) -> tuple[int, httpx.Headers, bytes]:
        """Send a request; return status, headers and body, bounded in time and size.

        httpx bounds each wait for the next bytes; a server that sends one a second would be waited for for hours.
        """
        ends = time.monotonic() + self._settings.timeout_s
        content = bytearray()
        with self._client.stream("POST", self._url, content=orjson.dumps(body),
                                 headers={"Content-Type": "application/json"}) as response:
            for part in response.iter_bytes():
                content += part
                if len(content) > MOST_BYTES:
                    raise httpx.ReadError(f"the answer is longer than {MOST_BYTES:,} bytes")
                if time.monotonic() > ends:
                    raise httpx.ReadTimeout(f"the answer is not complete after {self._settings.timeout_s:g} s")
            return response.status_code, response.headers, bytes(content)

    def _error(self, status: int, headers: httpx.Headers, content: bytes) -> Exception:
        """Return what an answer other than 200 means."""
        text = f"{status}: {self._plain(content.decode(errors='replace'))}"
        if "insufficient_quota" in text or status == 402:
            return ProviderError(f"{self.about} has no quota left ({text})")
        if status in _AGAIN or status >= 500:
            after = retry_after_s(headers.get("retry-after"), time.time())
            if after:
                self._pace.hold(after)
            return _AgainError(text, after)
        if status in _REFUSED:
            return _QuestionRefusedError(text)
        if status in (401, 403):
            return ProviderError(f"{self.about} refuses the key: set FRESHET_WRITER_API_KEY or "
                                 f"FRESHET_WRITER_API_KEY_FILE ({text})")
        if status == 404:
            return ProviderError(f"{self.about} is not there: check FRESHET_WRITER_MODEL and FRESHET_WRITER_URL, which "
                                 f"ends with /v1 on most servers ({text})")
        return ProviderError(f"{self.about} does not answer as an OpenAI-compatible server does ({text})")

    def _plain(self, said: object) -> str:
        """Return an error's text on one line, bounded, without the key: servers quote it when they refuse it."""
        text = str(said) or type(said).__name__
        if self._settings.api_key:
            text = text.replace(self._settings.api_key, "(secret)")
        return clean(text, 200)


def _pause(state: RetryCallState) -> float:
    """Return the seconds before the next try: random up to 1, 2, 4, … 60, and at least what the server asks for."""
    error = state.outcome.exception() if state.outcome else None
    return max(wait_random_exponential(multiplier=1, max=60)(state), getattr(error, "after_s", 0.0))


def _count(value: Any, otherwise: int) -> int:
    return value if type(value) is int and 0 <= value < 10**9 else otherwise


def _address(url: str) -> str:
    """Return the address of chat completions under a base URL.

    Raises:
        SettingsError: it is not the URL of a server. A user or a query is refused, because errors show the URL.
    """
    try:
        parts = urlsplit(url)
        wrong = parts.scheme not in {"http", "https"} or not parts.hostname or parts.port == 0
    except ValueError:
        wrong = True
    if wrong:
        raise SettingsError("FRESHET_WRITER_URL is not the base URL of a server, such as http://localhost:8000/v1")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise SettingsError("FRESHET_WRITER_URL has a user, a query or a fragment; the key goes into "
                            "FRESHET_WRITER_API_KEY")
    return f"{url.rstrip('/').removesuffix('/chat/completions')}/chat/completions"


def _parameters(text: str) -> dict[str, Any]:
    """Return the setting `parameters`, a JSON object or nothing."""
    try:
        found = orjson.loads(text) if text.strip() else {}
    except orjson.JSONDecodeError:
        found = None
    if not isinstance(found, dict):
        raise SettingsError('FRESHET_WRITER_PARAMETERS is not a JSON object, such as {"reasoning_effort": "low"}')
    return found
