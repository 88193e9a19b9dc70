"""The table follows Prometheus' conventions, its labels are bounded, and what is scraped is what it says."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.parser import text_string_to_metric_families

from schemas.liveness import Progress
from schemas.watch import instruments
from schemas.watch.table import ALL, BY_NAME, METRICS, Metric, series

ROOT = Path(__file__).parents[3]
# Base units, and what has none: counts of a named thing, sums of money, numbers between 0 and 1, states.
UNITS = {"seconds", "bytes", "nats", "ratio", "records", "events", "users", "info", "cost", "wealth", "versions",
         "samples", "target", "price", "queue", "failures", "up", "ready", "waiting", "available", "health"}
SNAPSHOT: dict[str, Any] = {
    "events": 10, "late": 3, "duplicates": 2, "too_late": 1, "strays": 4, "unknown_items": 1, "unknown_users": 1,
    "offsets_expired": 1, "offsets_cut": 0, "offsets_recreated": 0, "offsets_forgotten": 0, "offsets_missed": 7,
    "ranking_requests": 5, "knowledge_requests": 2, "alignment_samples": 0, "model_version": "m1+lora",
    "refreshes_requested": {"drift": 2}, "refresh_price": {"budget": 0.5, "queue": 0.0, "both": 0.5}}


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_a_metric_is_named_and_labelled_by_the_conventions(metric: Metric) -> None:
    assert re.fullmatch(r"freshet_[a-z_]+", metric.name)
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    unit = metric.name.removesuffix("_total").rsplit("_", 1)[-1]
    if metric.kind != "counter":
        assert unit in UNITS, "gauges and histograms say their unit"
    assert set(metric.values) == set(metric.labels), "every label says what it may hold"
    assert not {"le", "quantile", "job", "instance"} & set(metric.labels), "Prometheus' own"
    assert not {"user", "user_id", "item", "item_id", "event_id", "error_text"} & set(metric.labels)
    combinations = 1
    for values in metric.values.values():
        combinations *= len(values) if isinstance(values, tuple) else 1
    assert combinations <= 100
    assert bool(metric.buckets) == (metric.kind == "histogram")
    assert list(metric.buckets) == sorted(set(metric.buckets))
    assert metric.help[-1] != "."
    assert set(metric.roles) <= {*ALL, "supervisor"}


@pytest.mark.parametrize("metric", [one for one in METRICS if one.kind == "histogram"], ids=lambda metric: metric.name)
def test_a_histogram_has_the_series_that_the_table_promises(metric: Metric) -> None:
    """With bounds below 0 prometheus-client leaves the sum out: dashboards divided by nothing."""
    registry = CollectorRegistry()
    made = Histogram(metric.name, metric.help, metric.labels, buckets=metric.buckets, registry=registry)
    (made.labels(*metric.labels) if metric.labels else made).observe(0.5)
    (family,) = registry.collect()
    names = {sample.name for sample in family.samples} - {f"{metric.name}_created"}
    assert names == set(series(metric))


def test_no_metric_is_twice_in_the_table() -> None:
    assert len(BY_NAME) == len(METRICS)


def test_every_instrument_that_code_asks_for_is_in_the_table_and_every_row_has_a_source() -> None:
    """A row with neither counters to read nor code that fills it would be a promise that nothing keeps."""
    named: dict[str, set[str]] = {}
    for package in ("schemas", "streams", "workers", "models"):
        for path in (ROOT / package).rglob("*.py"):
            if path.name != "table.py":
                for node in ast.walk(ast.parse(path.read_text())):
                    if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(
                            r"freshet_[a-z_]+", node.value):
                        named.setdefault(node.value, set()).add(str(path.relative_to(ROOT)))
    assert set(named) <= set(BY_NAME)
    assert set(named) == {metric.name for metric in METRICS if metric.read is None}


def scraped() -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in text_string_to_metric_families(instruments.text().decode()):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


def test_what_is_scraped_are_the_counters_of_the_file(tmp_path: Path) -> None:
    progress = Progress(tmp_path, "streams", lambda: SNAPSHOT)
    instruments.PROGRESS.follow("streams", progress)
    progress.buried("unreadable", 3, "no JSON")
    progress.done(10, 0.5)
    progress.lags({("behaviour-events", 2): (5, 9)})
    found = scraped()
    assert {labels[0][1]: value for labels, value in found["freshet_events_total"].items()} == {
        "folded": 7.0, "late": 3.0, "duplicate": 2.0, "too_late": 1.0, "stray": 4.0, "apart": 0.0}
    role = ("role", "streams")
    assert found["freshet_dead_letters_total"][("reason", "unreadable"), role] == 3.0
    assert found["freshet_records_processed_total"][(role,)] == 10.0
    assert found["freshet_lag_records"][("partition", "2"), role, ("topic", "behaviour-events")] == 4.0
    assert found["freshet_model_info"][("adapter", "lora"), ("model_version", "m1"), role] == 1.0
    assert found["freshet_refresh_price"][(("of", "budget"),)] == 0.5
    assert found["freshet_batch_seconds_count"][(role,)] >= 1.0
    progress.done(7, 0.5)  # nothing is counted a second time
    assert scraped()["freshet_records_processed_total"][(role,)] == progress.snapshot()["processed"] == 17


def test_a_later_process_of_the_same_role_takes_the_earlier_ones_place(tmp_path: Path) -> None:
    for number in (1, 2):
        progress = Progress(tmp_path, "guard", dict)
        instruments.PROGRESS.follow("guard", progress)
        progress.done(number, 0.1)
    assert scraped()["freshet_records_processed_total"][(("role", "guard"),)] == 2.0
