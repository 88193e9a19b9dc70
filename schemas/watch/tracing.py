"""One event's trace through all topics, by W3C headers (`traceparent`, `tracestate`).

A producer's context is always passed on: from an event to the requests it causes and to the recommendation, so that a
consumer's trace can go on from the producer's. That costs a look at each record's headers and needs no library. Spans
are made only where OpenTelemetry is on (`start`), and only for records whose producer sampled them, or drawn by
`tracing.ratio` among events without a context. A batch is a span of its own that links them: the hot path never makes a
span per event.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from schemas.errors import SettingsError
from schemas.watch.context import current

Headers = Sequence[tuple[str, bytes | None]]
Passed = list[tuple[str, bytes]]
ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
LINKS = 128  # of a batch's span: OpenTelemetry's own limit
_PARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_STATE_BYTES = 512  # what W3C asks everyone to pass on; more is dropped


class Traced(NamedTuple):
    """A record that may belong to a trace.

    Args:
        user: decides which outputs go on from it.
        offset: in its partition.
    """

    user: str
    partition: int
    offset: int
    headers: Headers


class Consumed(NamedTuple):
    """What a batch's records have in common."""

    role: str
    group: str
    topic: str
    records: int


def context_of(headers: Headers) -> Passed:
    """Return the trace headers among a record's headers; [] if there is no context, or none that is well formed."""
    out: Passed = []
    for name, value in headers:
        if name == "traceparent" and value is not None and _PARENT.fullmatch(value):
            out.insert(0, (name, value))
        elif name == "tracestate" and value and len(value) <= _STATE_BYTES:
            out.append((name, value))
    return out if out and out[0][0] == "traceparent" else []


def sampled(context: Passed) -> bool:
    """Return whether the producer samples this trace."""
    return bool(context) and int(context[0][1][-2:], 16) & 1 == 1


@dataclass(slots=True)
class BatchTrace:
    """The traces in one batch: what its outputs carry, and the spans to end."""

    contexts: dict[str, Passed] = field(default_factory=dict)
    spans: list[Any] = field(default_factory=list)  # of records
    batch: Any = None

    def headers(self, user: str) -> Passed:
        """Return the headers for messages about a user."""
        return self.contexts.get(user, [])

    def end(self, failure: BaseException | None = None) -> None:
        """End the spans."""
        for span in (*self.spans, *([self.batch] if self.batch is not None else [])):
            if failure is not None:
                span.record_exception(failure)
                span.set_attribute("error.type", type(failure).__name__)
                span.set_status(_failed())
            span.end()
        self.spans, self.batch = [], None
        current.clear()


class Tracing:
    """Passes contexts on, and makes spans if it has a provider.

    Args:
        provider: an OpenTelemetry `TracerProvider`; None = off.
        ratio: share of events without a context that begin a trace here.
    """

    def __init__(self, provider: Any = None, ratio: float = 0.0) -> None:
        self._provider = provider
        self._ratio = ratio if provider is not None else 0.0
        self._tracer = provider.get_tracer("freshet") if provider is not None else None

    def batch(self, consumed: Consumed, records: Iterable[Traced], begin: bool = False) -> BatchTrace:
        """Return the traces of a batch, of the newest record of each user where several have one.

        Args:
            records: those that have headers, and with `begin` others as well.
            begin: whether records without a context may begin a trace.
        """
        trace = BatchTrace()
        chosen: list[tuple[Traced, Passed]] = []
        for record in records:
            context = context_of(record.headers) if record.headers else []
            if context:
                trace.contexts[record.user] = context
            if self._tracer is not None and (
                    sampled(context) or (begin and not context and random.random() < self._ratio)):
                chosen.append((record, context))
        if chosen:
            self._span(trace, consumed, chosen)
        return trace

    @property
    def begins(self) -> bool:
        """Whether records without headers are worth a look."""
        return self._ratio > 0

    def _span(self, trace: BatchTrace, consumed: Consumed, chosen: Sequence[tuple[Traced, Passed]]) -> None:
        from opentelemetry.trace import Link, SpanKind, set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        assert self._tracer is not None  # noqa: S101 - for the type checker
        w3c = TraceContextTextMapPropagator()
        common = {"messaging.system": "kafka", "messaging.destination.name": consumed.topic,
                  "messaging.consumer.group.name": consumed.group, "freshet.role": consumed.role}
        for record, context in chosen:
            parent = w3c.extract({name: value.decode() for name, value in context})
            span = self._tracer.start_span(
                f"process {consumed.topic}", parent, kind=SpanKind.CONSUMER, attributes=common | {
                    "messaging.operation.name": "process", "messaging.operation.type": "process",
                    "messaging.destination.partition.id": str(record.partition),
                    "messaging.kafka.offset": record.offset})
            carrier: dict[str, str] = {}
            w3c.inject(carrier, set_span_in_context(span))
            trace.contexts[record.user] = [(name, value.encode()) for name, value in carrier.items()]
            trace.spans.append(span)
        links = [Link(span.get_span_context()) for span in trace.spans[:LINKS]]
        from opentelemetry.context import Context

        trace.batch = self._tracer.start_span(
            f"receive {consumed.topic}", Context(), kind=SpanKind.CONSUMER, links=links, attributes=common | {
                "messaging.operation.name": "poll", "messaging.operation.type": "receive",
                "messaging.batch.message_count": consumed.records})
        # Lines logged meanwhile belong to the one event, if it is one.
        here = (trace.spans[0] if len(trace.spans) == 1 else trace.batch).get_span_context()
        current.set(f"{here.trace_id:032x}", f"{here.span_id:016x}")

    def close(self) -> None:
        """Send what is left."""
        if self._provider is not None:
            self._provider.shutdown()


OFF = Tracing()
_used = OFF


def tracing() -> Tracing:
    """Return what this process traces with; off until `start` or `use`."""
    return _used


def use(made: Tracing) -> None:
    """Trace with this from now on; for `start` and tests."""
    global _used  # noqa: PLW0603 - one per process, like OpenTelemetry's own
    _used = made


def start(role: str, ratio: float, environ: Mapping[str, str] | None = None) -> Tracing:
    """Turn tracing on where an OpenTelemetry endpoint is set, and return it.

    OpenTelemetry's own variables configure the rest: `OTEL_SERVICE_NAME`, `OTEL_TRACES_SAMPLER`,
    `OTEL_EXPORTER_OTLP_HEADERS`, `OTEL_SDK_DISABLED` and others.

    Raises:
        SettingsError: OpenTelemetry is not installed.
    """
    environ = os.environ if environ is None else environ
    if not any(environ.get(name) for name in ENDPOINTS) or environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return OFF
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise SettingsError(f"{ENDPOINTS[0]} is set, but OpenTelemetry is not installed ({error.name}): run "
                            "`pip install 'freshet[trace]'`, or unset it") from error
    name = environ.get("OTEL_SERVICE_NAME") or f"freshet-{role}"
    provider = TracerProvider(resource=Resource.create({SERVICE_NAME: name}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    use(Tracing(provider, ratio))
    return tracing()


def _failed() -> Any:
    from opentelemetry.trace import Status, StatusCode

    return Status(StatusCode.ERROR)
