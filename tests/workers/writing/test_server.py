"""The HTTP provider against a server that really speaks HTTP."""

from __future__ import annotations

import gzip
import logging
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from schemas.errors import SettingsError
from schemas.settings import WriterSettings
from tests.workers.writing.stub import KEY, Stub, completion
from workers.writing import server
from workers.writing.prompts import prompt_named
from workers.writing.provider import Answer, ProviderError, SpendingLimitError
from workers.writing.server import ServerProvider

ITEMS = prompt_named("items")


@pytest.fixture
def stub() -> Iterator[Stub]:
    made = Stub()
    yield made
    made.close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Back-off in hundredths of seconds; what a server asks for with Retry-After is kept."""
    pause = server.wait_random_exponential
    monkeypatch.setattr(server, "wait_random_exponential", lambda **_: pause(multiplier=0.01, max=0.05))


def settings(stub: Stub, **more: Any) -> WriterSettings:
    return WriterSettings(**{"provider": "server", "url": stub.url, "model": "strong", "api_key": KEY} | more)


def ask(provider: ServerProvider, *inputs: str) -> dict[str, Answer]:
    asked = {ITEMS.asks(text).key: text for text in inputs}
    return {asked[answer.key]: answer for answer in provider.answers([ITEMS.asks(text) for text in inputs])}


def test_answers_come_with_tokens_and_cost(stub: Stub) -> None:
    provider = ServerProvider(settings(stub, price_read=1.0, price_written=10.0))
    found = ask(provider, "a soap", "a brush")
    assert found["a soap"].text == "about a soap, soft, mild"
    assert (found["a soap"].read, found["a soap"].written, found["a soap"].cost) == (100, 20, pytest.approx(3e-4))
    assert provider.spending.tokens == 240
    request = stub.requests[0]
    assert (request["path"], request["key"]) == ("/v1/chat/completions", f"Bearer {KEY}")
    assert request["body"]["model"] == "strong"
    assert request["body"]["max_tokens"] == ITEMS.answer_tokens
    assert [message["role"] for message in request["body"]["messages"]] == ["system", "user"]


def test_questions_are_asked_side_by_side_up_to_the_limit(stub: Stub) -> None:
    stub.pause_s = 0.05
    found = ask(ServerProvider(settings(stub, concurrency=3)), *(f"item {at}" for at in range(12)))
    assert len(found) == 12
    assert 2 <= stub.most_running <= 3


def test_parameters_are_merged_and_null_leaves_one_out(stub: Stub) -> None:
    ask(ServerProvider(settings(stub, parameters='{"temperature": null, "seed": 7}')), "a soap")
    body = stub.requests[0]["body"]
    assert "temperature" not in body
    assert body["seed"] == 7


def test_after_429_nothing_is_asked_before_retry_after(stub: Stub) -> None:
    stub.answer = lambda number, _: (
        (429, {"Retry-After": "1"}, {"error": "slow down"}) if number == 0 else (200, {}, completion("a, b, c")))
    found = ask(ServerProvider(settings(stub, concurrency=1)), "a soap", "a brush")
    assert [answer.text for answer in found.values()] == ["a, b, c"] * 2
    assert stub.times[1] - stub.times[0] >= 0.99
    assert len(stub.requests) == 3


@pytest.mark.parametrize("answer", [
    (500, {}, {"error": "broken"}),
    (503, {}, b"<html>busy</html>"),
    (200, {}, b"{\"choices\": [{\"mess"),  # malformed
    (200, {"Content-Length": "400"}, b"{\"choices\""),  # broken off
    (200, {}, {"choices": []}),
    (200, {}, {"error": "none"}),
    (200, {}, b"[1]"),
    (200, {}, completion(7)),
    (200, {"Content-Encoding": "gzip"}, b"not gzip"),
], ids=["500", "503", "malformed", "broken off", "no choice", "no answer", "a list", "no text", "not gzip"])
def test_what_is_no_answer_is_asked_again(stub: Stub, answer: tuple[int, dict[str, str], Any]) -> None:
    stub.answer = lambda number, _: answer if number < 2 else (200, {}, completion("a, b, c"))
    assert ask(ServerProvider(settings(stub)), "a soap")["a soap"].text == "a, b, c"
    assert len(stub.requests) == 3


def test_a_server_that_does_not_answer_in_time_is_asked_again(stub: Stub) -> None:
    def slow(number: int, _: str) -> tuple[int, dict[str, str], Any]:
        if number == 0:
            time.sleep(1.0)
        return 200, {}, completion("a, b, c")

    stub.answer = slow
    assert ask(ServerProvider(settings(stub, timeout_s=0.4)), "a soap")["a soap"].text == "a, b, c"


def test_a_server_that_trickles_is_not_waited_for() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    provider = ServerProvider(WriterSettings(
        url=f"http://127.0.0.1:{listener.getsockname()[1]}/v1", model="m", timeout_s=0.5, retries=0))
    answers = provider.answers([ITEMS.asks("a soap")])

    def trickle() -> None:
        connection, _ = listener.accept()
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        try:
            for _ in range(100):
                connection.sendall(b" ")
                time.sleep(0.1)
        except OSError:
            pass
        finally:
            connection.close()

    threading.Thread(target=trickle, daemon=True).start()
    began = time.monotonic()
    (answer,) = answers
    assert not answer.final
    assert "not complete" in answer.refused
    assert time.monotonic() - began < 5
    listener.close()


def test_a_huge_answer_is_not_read_to_its_end(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MOST_BYTES", 100_000)
    stub.answer = lambda *_: (200, {"Content-Encoding": "gzip"}, gzip.compress(b" " * 50_000_000))
    answer = ask(ServerProvider(settings(stub, retries=0)), "a soap")["a soap"]
    assert "longer than" in answer.refused
    assert not answer.final


def test_a_refused_question_is_final_and_the_next_is_asked(stub: Stub) -> None:
    stub.answer = lambda _, user: (
        (400, {}, {"error": "too long"}) if "soap" in user else (200, {}, completion("a, b, c")))
    found = ask(ServerProvider(settings(stub, concurrency=1)), "a soap", "a brush")
    assert found["a soap"].final
    assert "400" in found["a soap"].refused
    assert found["a brush"].text == "a, b, c"
    assert len(stub.requests) == 2


def test_a_cut_answer_says_so(stub: Stub) -> None:
    stub.answer = lambda *_: (200, {}, completion("a, b, c, d-ha", finish="length"))
    answer = ask(ServerProvider(settings(stub)), "a soap")["a soap"]
    assert answer.cut
    assert ITEMS.said(answer.text, cut=answer.cut) == "a, b, c"


@pytest.mark.parametrize(("status", "body", "says"), [
    (401, {"error": f"Incorrect API key provided: {KEY}"}, "FRESHET_WRITER_API_KEY"),
    (403, {"error": "no"}, "FRESHET_WRITER_API_KEY"),
    (404, {"error": "no such model"}, "FRESHET_WRITER_MODEL"),
    (402, {"error": "pay"}, "no quota left"),
    (429, {"error": {"code": "insufficient_quota"}}, "no quota left"),
    (302, {}, "OpenAI-compatible"),
])
def test_what_no_other_try_can_help_ends_the_run(stub: Stub, status: int, body: Any, says: str) -> None:
    stub.answer = lambda *_: (status, {"Location": "http://127.0.0.1:1/"}, body)
    with pytest.raises(ProviderError, match=says) as caught:
        ask(ServerProvider(settings(stub)), *"abcdefgh")
    assert KEY not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(stub.requests) <= 8


def test_a_server_that_fails_for_good_ends_the_run_with_the_reason(stub: Stub) -> None:
    stub.answer = lambda *_: (500, {}, {"error": "out of memory"})
    with pytest.raises(ProviderError, match=r"none of the last 5 questions: 500.*out of memory"):
        ask(ServerProvider(settings(stub, retries=1, concurrency=1)), *"abcdefghij")
    assert len(stub.requests) == 10


def test_a_server_that_refuses_every_question_ends_the_run(stub: Stub) -> None:
    stub.answer = lambda *_: (400, {}, {"error": "unsupported parameter max_tokens"})
    with pytest.raises(ProviderError, match="unsupported parameter"):
        ask(ServerProvider(settings(stub, concurrency=1)), *(f"item {at}" for at in range(50)))
    assert len(stub.requests) == server.REFUSED_IN_A_ROW


def test_a_server_that_is_not_there_is_an_error_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    provider = ServerProvider(WriterSettings(url=f"http://127.0.0.1:{port}/v1", model="m"))
    with pytest.raises(ProviderError, match="cannot be reached"):
        ask(provider, "a soap")


def test_the_token_limit_stops_the_run_and_is_not_exceeded(stub: Stub) -> None:
    most = 3000
    stub.answer = lambda *_: (200, {}, completion("a, b, c", read=ITEMS.asks("item 10").estimate, written=100))
    provider = ServerProvider(settings(stub, most_tokens=most))
    found: list[Answer] = []
    with pytest.raises(SpendingLimitError, match="FRESHET_WRITER_MOST_TOKENS"):
        found.extend(provider.answers([ITEMS.asks(f"item {at}") for at in range(10, 60)]))
    assert 5 <= len(found) <= 12
    assert len(stub.requests) == len(found)
    assert provider.spending.tokens <= most


def test_the_money_limit_stops_the_run_and_is_not_exceeded(stub: Stub) -> None:
    provider = ServerProvider(settings(stub, most_cost=0.01, price_read=5.0, price_written=50.0))
    found: list[Answer] = []
    with pytest.raises(SpendingLimitError, match="FRESHET_WRITER_MOST_COST"):
        found.extend(provider.answers([ITEMS.asks(f"item {at}") for at in range(10, 60)]))
    assert found
    assert provider.spending.spent <= 0.01


def test_requests_per_minute_are_kept(stub: Stub) -> None:
    ask(ServerProvider(settings(stub, requests_per_minute=600)), *"abcde")
    gaps = [later - earlier for earlier, later in zip(stub.times, stub.times[1:], strict=False)]
    assert stub.times[-1] - stub.times[0] >= 0.35
    assert len(gaps) == 4


def test_the_key_is_in_no_log_error_or_repr(stub: Stub, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("", "httpx"):  # a role that ran before in this process may have quietened it
        caplog.set_level(logging.DEBUG, name)
    stub.answer = lambda *_: (400, {}, {"error": f"bad request of {KEY}"})
    made = settings(stub)
    answer = ask(ServerProvider(made), "a soap")["a soap"]
    assert "(secret)" in answer.refused
    shown = caplog.text + repr(made) + repr(answer)
    assert KEY not in shown
    assert "chat/completions" in shown  # the log was looked at


@pytest.mark.parametrize(("wrong", "says"), [
    ({"url": ""}, "FRESHET_WRITER_URL"), ({"url": "localhost:8000"}, "FRESHET_WRITER_URL"),
    ({"url": "ftp://host/v1"}, "FRESHET_WRITER_URL"), ({"url": "http://host:99999/v1"}, "FRESHET_WRITER_URL"),
    ({"url": f"http://me:{KEY}@host/v1"}, "FRESHET_WRITER_API_KEY"),
    ({"url": f"http://host/v1?key={KEY}"}, "FRESHET_WRITER_API_KEY"),
    ({"model": ""}, "FRESHET_WRITER_MODEL"), ({"api_key": f"{KEY}\nx"}, "FRESHET_WRITER_API_KEY"),
    ({"api_key": "schlüssel"}, "FRESHET_WRITER_API_KEY"), ({"parameters": "[1]"}, "FRESHET_WRITER_PARAMETERS"),
    ({"parameters": "{"}, "FRESHET_WRITER_PARAMETERS")])
def test_wrong_settings_are_one_line_without_the_key(wrong: dict[str, str], says: str) -> None:
    good = WriterSettings(url="http://localhost:8000/v1", model="m")
    with pytest.raises(SettingsError, match=says) as caught:
        ServerProvider(replace(good, **wrong))
    assert KEY not in str(caught.value)
    assert "\n" not in str(caught.value)
