"""Contexts are passed on by W3C's rules; spans are made only for what is sampled, and batches link them."""

from __future__ import annotations

import logging
import subprocess
import sys
from dataclasses import replace

import orjson
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from schemas.errors import SettingsError
from schemas.settings import LogSettings, QdrantSettings, Settings
from schemas.watch import tracing
from schemas.watch.context import current
from schemas.watch.tracing import LINKS, OFF, Consumed, Traced, Tracing, context_of, sampled
from workers.supervision.logs import configure

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE}-00f067aa0ba902b7-01".encode()
BATCH = Consumed("streams", "freshet-streams", "behaviour-events", 100)


def traced(user: str = "u1", parent: bytes | None = PARENT, *more: tuple[str, bytes | None], offset: int = 7) -> Traced:
    return Traced(user, 3, offset, [("traceparent", parent), *more])


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def on(spans: InMemorySpanExporter) -> Tracing:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    return Tracing(provider)


@pytest.mark.parametrize("bad", [
    None, b"", b"00", PARENT[:-1], PARENT + b"-x", PARENT.upper(), b"ff" + PARENT[2:],
    PARENT.replace(b"4bf9", b"4bf\n"), b"00-" + b"0" * 32 + PARENT[35:], PARENT[:36] + b"0" * 16 + PARENT[52:]])
def test_what_is_no_context_is_not_passed_on(bad: bytes | None) -> None:
    assert context_of([("traceparent", bad), ("tracestate", b"a=1")]) == []


def test_a_context_is_passed_on_with_its_state_and_nothing_else() -> None:
    found = context_of([("tracestate", b"a=1"), ("backfill", b""), ("traceparent", PARENT), ("baggage", b"user=7")])
    assert found == [("traceparent", PARENT), ("tracestate", b"a=1")]
    assert context_of([("tracestate", b"x" * 5000), ("traceparent", PARENT)]) == [("traceparent", PARENT)]
    assert context_of([("tracestate", b"a=1")]) == []


def test_off_a_producers_context_reaches_its_users_messages_unchanged() -> None:
    later = PARENT.replace(b"00f0", b"11f0")
    trace = OFF.batch(BATCH, [traced("u1"), traced("u2", None), traced("u1", later)])
    assert trace.headers("u1") == [("traceparent", later)]
    assert trace.headers("u2") == trace.headers("u3") == []
    assert trace.spans == []
    trace.end()


def test_off_opentelemetry_is_not_even_imported() -> None:
    code = ("import sys, workers.cli.service, streams.service.app; from schemas.watch.tracing import OFF, start;"
            "assert start('streams', 1.0, {}) is OFF; assert 'opentelemetry' not in sys.modules")
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_sampled_event_gets_a_span_in_its_producers_trace_and_the_batch_links_it(
    on: Tracing, spans: InMemorySpanExporter,
) -> None:
    trace = on.batch(BATCH, [traced("u1"), traced("u2", PARENT[:-1] + b"0")])
    assert current.ids[0] == TRACE
    (name, parent), *_ = trace.headers("u1")
    assert (name, parent[:36], parent[-3:]) == ("traceparent", PARENT[:36], b"-01")
    assert parent != PARENT, "the next role's parent is this role's span"
    assert trace.headers("u2") == [("traceparent", PARENT[:-1] + b"0")], "not sampled: passed on as it came"
    trace.end()
    assert current.ids == ("", "")
    one, batch = spans.get_finished_spans()
    assert f"{one.context.trace_id:032x}" == TRACE
    assert f"{one.parent.span_id:016x}" == "00f067aa0ba902b7"
    assert one.name == "process behaviour-events"
    assert dict(one.attributes) == {
        "messaging.system": "kafka", "messaging.destination.name": "behaviour-events", "freshet.role": "streams",
        "messaging.consumer.group.name": "freshet-streams", "messaging.operation.name": "process",
        "messaging.operation.type": "process", "messaging.destination.partition.id": "3", "messaging.kafka.offset": 7}
    assert batch.name == "receive behaviour-events"
    assert batch.parent is None
    assert [link.context.span_id for link in batch.links] == [one.context.span_id]
    assert batch.attributes["messaging.batch.message_count"] == 100


def test_a_batch_without_sampled_records_has_no_span(on: Tracing, spans: InMemorySpanExporter) -> None:
    on.batch(BATCH, [traced("u1", None), traced("u2", PARENT[:-1] + b"0")]).end()
    assert spans.get_finished_spans() == ()


def test_links_are_bounded(on: Tracing, spans: InMemorySpanExporter) -> None:
    on.batch(BATCH, [traced(f"u{n}") for n in range(2 * LINKS)]).end()
    assert len(spans.get_finished_spans()[-1].links) == LINKS


def test_events_without_a_context_begin_a_trace_by_the_ratio(spans: InMemorySpanExporter) -> None:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    records = [Traced(f"u{n}", 0, n, []) for n in range(4000)]
    some = Tracing(provider, 0.1)
    assert some.begins
    begun = some.batch(BATCH, records, begin=True)
    assert 280 < len(begun.spans) < 520
    assert all(sampled(context) for context in begun.contexts.values())
    assert some.batch(BATCH, records).spans == [], "only where events come in"
    assert not Tracing(None, 0.1).begins


def test_a_failure_is_in_the_span(on: Tracing, spans: InMemorySpanExporter) -> None:
    on.batch(BATCH, [traced()]).end(KeyError("x"))
    for span in spans.get_finished_spans():
        assert span.status.status_code == StatusCode.ERROR
        assert span.attributes["error.type"] == "KeyError"


def test_an_endpoint_turns_it_on_and_disabled_turns_it_off() -> None:
    endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}
    assert tracing.start("ranking", 0.0, endpoint | {"OTEL_SDK_DISABLED": "true"}) is OFF
    try:
        made = tracing.start("ranking", 0.0, endpoint)
        assert made is tracing.tracing() is not OFF
        assert made._provider.resource.attributes["service.name"] == "freshet-ranking"
        made.close()
    finally:
        tracing.use(OFF)


def test_without_the_library_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(SettingsError, match=r"pip install 'freshet\[trace\]'"):
        tracing.start("ranking", 0.0, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"})


@pytest.mark.parametrize("kind", ["text", "json"])
def test_log_lines_name_the_trace_and_no_secret(
    on: Tracing, kind: str, capsys: pytest.CaptureFixture[str],
) -> None:
    secret = 'kn"ow\\n'  # noqa: S105 - a made-up one; as JSON it is spelled otherwise
    settings = replace(Settings(), log=LogSettings(format=kind), qdrant=QdrantSettings(api_key=secret))
    root, handlers = logging.getLogger(), logging.getLogger().handlers[:]
    try:
        configure(settings, "ranking")
        log = logging.getLogger("freshet.test")
        trace = on.batch(BATCH, [traced()])
        try:
            raise ValueError(f"key {secret} is wrong")
        except ValueError:
            log.exception("cannot\nconnect with %s", secret)
        trace.end()
        log.warning("later")
    finally:
        root.handlers[:] = handlers
    out = capsys.readouterr().err
    assert secret not in out
    assert orjson.dumps(secret).decode()[1:-1] not in out
    if kind == "text":
        assert f"cannot\nconnect with (secret) trace_id={TRACE} span_id=" in out
        assert out.splitlines()[-1].endswith("ranking freshet.test: later")
        return
    first, second = map(orjson.loads, out.splitlines())
    assert (first["level"], first["role"], first["logger"]) == ("ERROR", "ranking", "freshet.test")
    assert first["message"] == "cannot\nconnect with (secret)"
    assert first["error"].endswith("ValueError: key (secret) is wrong")
    assert first["trace_id"] == TRACE
    assert len(first["span_id"]) == 16
    assert first["time"].endswith("+00:00")
    assert "trace_id" not in second
    assert "error" not in second
