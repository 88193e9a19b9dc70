"""The whole stack, watched: every port says what files and topics say, and one event leaves its trace in all roles."""

from __future__ import annotations

import gzip
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import orjson
import pytest
from confluent_kafka import Producer
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from prometheus_client.parser import text_string_to_metric_families

from schemas.liveness import counters_file
from schemas.watch.table import BY_NAME, METRICS, series
from tests.system.stack import Stack
from tests.system.test_main_job import catalogue, fully_answered, sessions
from workers.kafka.reader import read_all
from workers.supervision.broker import free_port
from workers.supervision.healthz import PORTS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
ROLES = ("streams", "knowledge", "ranking", "guard")
# Only after something went wrong, or on a GPU.
SELDOM = {"freshet_store_errors_total", "freshet_gpu_memory_bytes", "freshet_dead_letters_total"}
Scrape = dict[str, dict[tuple[tuple[str, str], ...], float]]


class Collector(ThreadingHTTPServer):
    """Takes what OpenTelemetry exporters send, as a collector does."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Traces)
        self.spans: list[tuple[str, Any]] = []  # service and span

    def of(self, trace_id: str) -> list[tuple[str, Any]]:
        return [(service, span) for service, span in list(self.spans) if span.trace_id.hex() == trace_id]


class _Traces(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            names = {one.key: one.value.string_value for one in resource.resource.attributes}
            self.server.spans += [(names["service.name"], span) for scope in resource.scope_spans
                                  for span in scope.spans]
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class Watched(Stack):
    """A stack with a port per role, on which events have been answered."""

    port: int
    events: int
    collector: Collector

    def get(self, role: str, path: str) -> bytes:
        return urlopen(f"http://127.0.0.1:{self.port + PORTS[role]}{path}", timeout=10).read()

    def scrape(self, role: str) -> Scrape:
        found: Scrape = {}
        for family in text_string_to_metric_families(self.get(role, "/metrics").decode()):
            for sample in family.samples:
                found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
        return found


@pytest.fixture(scope="module")
def stack(fitted: tuple[Path, dict[str, str]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    home = tmp_path_factory.mktemp("watched") / "home"
    shutil.copytree(fitted[0], home, ignore=shutil.ignore_patterns("run", "streams", "store"))
    port = 20_000 + free_port() % 10_000  # eight in a row, below those that the kernel gives away
    watched = Watched(home, **fitted[1], FRESHET_METRICS_PORT=str(port), FRESHET_REFRESH_MIN_HISTORY="3",
                      FRESHET_REFRESH_POLICY="freshet", FRESHET_METRICS_COST_PER_HOUR="3.6", FRESHET_LOG_FORMAT="json",
                      FRESHET_CONSOLE_PORT=str(port + 8), OTEL_BSP_SCHEDULE_DELAY="200")
    watched.port = port
    with ExitStack() as opened:
        watched.collector = opened.enter_context(Collector())
        opened.callback(watched.collector.shutdown)
        Thread(target=watched.collector.serve_forever, daemon=True).start()
        watched.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = f"http://127.0.0.1:{watched.collector.server_port}"
        running = opened.enter_context(watched)
        events = sessions(catalogue(running), users=6, per_user=8)
        for start in range(0, len(events), 12):
            running.produce(events[start:start + 12])
        running.produce([events[0], b"no event"])
        running.until(lambda: fully_answered(running, events))
        running.until(lambda: any(answer["source"] == "fused" for answer in running.records("recommendations")))
        running.until(lambda: len(running.records("dead-letters")) == 1)
        running.events = len(events)
        yield running


@pytest.mark.parametrize("role", [*ROLES, "supervisor"])
def test_a_role_shows_every_metric_of_the_table_with_its_labels(stack: Watched, role: str) -> None:
    stack.until(lambda: BY_NAME["freshet_lag_seconds"].name in stack.scrape("streams"))  # the broker is asked every 5 s
    found = stack.scrape(role)
    for metric in METRICS:
        names = [name for name in series(metric) if name in found]
        if role not in metric.roles:
            continue
        if metric.name in SELDOM or (metric.name.startswith("freshet_lag") and role != "streams"):
            assert metric.name not in found or metric.labels
            continue
        assert names == list(series(metric)), metric.name
        for name in names:
            for labels in found[name]:
                assert {label for label, _ in labels} - {"le"} == set(metric.labels)
                for label, value in labels:
                    allowed = metric.values.get(label)
                    assert label == "le" or isinstance(allowed, str) or value in allowed, (name, label, value)
    unknown = {name for name in found if name.startswith("freshet_")} - {
        one for metric in METRICS for one in series(metric)} - {f"{m.name}_created" for m in METRICS} - {
        f"{m.name.removesuffix('_total')}_created" for m in METRICS}
    assert unknown == set()


def test_events_are_counted_once_by_what_became_of_them(stack: Watched) -> None:
    stack.until(lambda: stack.scrape("streams")["freshet_events_total"][(("outcome", "duplicate"),)] == 1)
    found = stack.scrape("streams")
    outcomes = {labels[0][1]: value for labels, value in found["freshet_events_total"].items()}
    assert outcomes["folded"] + outcomes["late"] == stack.events
    assert found["freshet_dead_letters_total"][("reason", "unreadable"), ("role", "streams")] == 1
    assert sum(found["freshet_refreshes_requested_total"].values()) == len(stack.records("knowledge-requests"))


@pytest.mark.parametrize("role", ROLES)
def test_file_and_port_say_the_same(stack: Watched, role: str) -> None:
    def agree() -> bool:
        file, found = json(stack, role), stack.scrape(role)
        return (found["freshet_records_processed_total"][(("role", role),)] == file["processed"]
                and found["freshet_messages_produced_total"][(("role", role),)] == file["produced"])

    stack.until(agree)  # the files are written every second


@pytest.mark.parametrize("role", ROLES)
def test_every_second_of_a_consumer_belongs_to_one_activity(stack: Watched, role: str) -> None:
    before, since = stack.scrape(role)["freshet_consumer_seconds_total"], time.monotonic()
    time.sleep(3.0)
    after, passed = stack.scrape(role)["freshet_consumer_seconds_total"], time.monotonic() - since
    assert sum(after.values()) - sum(before.values()) == pytest.approx(passed, abs=0.5)
    assert max(after, key=lambda labels: after[labels] - before[labels]) == (("activity", "idle"), ("role", role))


@pytest.mark.parametrize("role", [*ROLES, "console", "store", "supervisor"])
def test_probes_answer(stack: Watched, role: str) -> None:
    for path in ("/livez", "/readyz", "/healthz"):
        assert orjson.loads(stack.get(role, path))
    assert stack.scrape(role)["process_resident_memory_bytes"][()] > 1e7


def test_the_supervisor_shows_the_roles(stack: Watched) -> None:
    found = stack.scrape("supervisor")
    assert {dict(labels)["role"] for labels in found["freshet_role_up"]} == {*ROLES, "console", "store"}
    assert found["freshet_health"][(("state", "ok"),)] == 1


def test_the_console_says_what_the_topics_and_the_store_say(stack: Watched) -> None:
    def get(path: str) -> tuple[int, bytes]:
        try:
            with urlopen(f"http://127.0.0.1:{stack.port + PORTS['console'] + 1}{path}", timeout=10) as answer:
                return answer.status, answer.read()
        except HTTPError as error:
            return error.code, error.read()

    assert f"console: http://127.0.0.1:{stack.port + 8}" in stack.log.read_text()
    stack.until(lambda: get("/v1/health")[0] == 200)
    newest = {one["user_id"]: one for one in stack.records("recommendations")}
    for user, last in list(newest.items())[:2]:
        stack.until(lambda user=user, last=last: orjson.loads(
            get(f"/v1/users/{user}/recommendations")[1]).get("ranked_at") == last["ranked_at"])
        body = orjson.loads(get(f"/v1/users/{user}/recommendations")[1])
        assert [one["item_id"] for one in body["items"]] == [one["item_id"] for one in last["items"]]
        assert [one["item_id"] for one in body["reference"]] == last["reference"]
        assert all(one["title"].startswith("The ") for one in body["items"])
        state = orjson.loads(get(f"/v1/users/{user}/state")[1])
        assert (state["count"], len(state["history"])) == (8, 8)
        assert state["drift"]["threshold"] is not None
    update = stack.records("knowledge-updates")[-1]
    found = orjson.loads(get(f"/v1/users/{update['user_id']}/knowledge")[1])
    assert found["version"] == update["version"]
    assert found["versions"][0]["freshness_s"] >= 0
    item = orjson.loads(get(f"/v1/items/{state['history'][0]['item_id']}")[1])
    assert user in {one["user_id"] for one in item["takers"]}
    assert item["by_text"] or "encod" in item["problem"] or not item["problem"]
    for page in ("/", "/live", f"/user?id={update['user_id']}", f"/item?id={item['item_id']}", "/search?q=the",
                 "/dead-letters", "/models", "/experiments", "/settings"):
        status, text = get(page)
        assert status == 200, page
        assert text.startswith(b"<") or page == "/live", page
    assert b"no event" in get("/dead-letters/0")[1]
    overview = get("/")[1].decode()
    assert "dead letters" in overview.lower()


def test_one_events_trace_goes_through_streams_and_ranking_to_the_recommendation(stack: Watched) -> None:
    """And through knowledge, back through streams, to a second one: a new user's third event asks for knowledge."""
    trace, producer_span = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    items = catalogue(stack)
    sender = Producer({"bootstrap.servers": stack.kafka.bootstrap, "log_level": 0})
    for number in range(3):
        event = {"user_id": "traced", "item_id": items[number], "event_time": 1_700_000_000 + number}
        headers = [("traceparent", f"00-{trace}-{producer_span}-01"), ("tracestate", "shop=1")] if number == 2 else None
        sender.produce("behaviour-events", orjson.dumps(event), key="traced", headers=headers)
        sender.flush(20)
        stack.until(lambda done=number: stack.answered().get("traced", 0) > done)
    wanted = {("freshet-streams", "process behaviour-events"), ("freshet-ranking", "process ranking-requests"),
              ("freshet-knowledge", "process knowledge-requests"), ("freshet-streams", "process knowledge-updates")}
    stack.until(lambda: wanted <= {(service, span.name) for service, span in stack.collector.of(trace)})
    spans = stack.collector.of(trace)
    by_id = {span.span_id.hex(): (service, span) for service, span in spans}
    first = next(span for _, span in spans if span.name == "process behaviour-events")
    assert first.parent_span_id.hex() == producer_span
    for _, span in spans:
        assert span is first or span.parent_span_id.hex() in by_id, span.name
        assert "traced" not in str(span.attributes), "no user in a trace"
    ranked = next(span for _, span in spans if span.name == "process ranking-requests")
    assert by_id[ranked.parent_span_id.hex()][0] == "freshet-streams"
    # What services outside get is a child of the span that ranked it.
    carried = [dict(message.headers() or []) for message in read_all(stack.kafka, ["recommendations"])
               if message.key() == b"traced"]
    assert [bool(headers) for headers in carried[:3]] == [False, False, True]
    assert carried[2]["traceparent"][3:35] == trace.encode()
    assert carried[2]["tracestate"] == b"shop=1"
    assert by_id[carried[2]["traceparent"][36:52].decode()][1].name == "process ranking-requests"
    linking = [span for _, span in stack.collector.spans if span.name.startswith("receive ")]
    assert {link.span_id.hex() for span in linking for link in span.links} >= {first.span_id.hex()}


def test_logs_are_json_lines(stack: Watched) -> None:
    for role in ROLES:
        lines = (stack.home / "run" / f"{role}.log").read_text().splitlines()
        lines = [line for line in lines if not line.startswith("---")]
        assert not [line for line in lines if not line.startswith("{")]
        parsed = [orjson.loads(line) for line in lines]
        assert parsed
        assert all(line["role"] == role and line["level"] and line["message"] for line in parsed)


def json(stack: Watched, role: str) -> dict[str, object]:
    return orjson.loads(counters_file(stack.home, role).read_bytes())
