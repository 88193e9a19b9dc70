"""Instruments from the table, and what `/metrics` answers.

An instrument is made when its module asks for it, so a role shows the metrics it has. What roles count for
`run/ROLE.json` is read at each scrape by `ProgressCollector`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.core import Metric as Family
from prometheus_client.registry import Collector

from schemas.watch.table import BY_NAME, METRICS, Metric, Samples

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)
_made: dict[str, Counter | Gauge | Histogram] = {}
_lock = threading.Lock()


def counter(name: str) -> Counter:
    """Return the counter of this name."""
    return _instrument(name, Counter)


def gauge(name: str) -> Gauge:
    """Return the gauge of this name."""
    return _instrument(name, Gauge)


def histogram(name: str) -> Histogram:
    """Return the histogram of this name. An observation costs some 2 µs: for batches and answers, not for events."""
    return _instrument(name, Histogram)


def _instrument(name: str, kind: type[Any]) -> Any:
    metric = BY_NAME[name]
    assert metric.read is None and metric.kind == kind.__name__.lower(), name  # noqa: S101, PT018 - a slip in our code
    with _lock:
        if name not in _made:
            more = {"buckets": metric.buckets} if metric.kind == "histogram" else {}
            _made[name] = kind(name, metric.help, metric.labels, registry=REGISTRY, **more)
        return _made[name]


class Counted(Protocol):
    """A role's counters, as `schemas.liveness.Progress` keeps them."""

    def snapshot(self) -> Mapping[str, Any]:
        """Return them, `role` among them."""


class ProgressCollector(Collector):
    """Shows the counters of the roles in this process; there is one role, but for tests."""

    def __init__(self) -> None:
        self._roles: dict[str, Counted] = {}

    def follow(self, role: str, progress: Counted) -> None:
        """Show a role's counters from now on, in place of an earlier object's for the same role."""
        self._roles[role] = progress

    def describe(self) -> Iterable[Family]:
        """Return nothing, as no role is known yet."""
        return []

    def collect(self) -> Iterator[Family]:
        """Yield every metric of the table that is read from counters."""
        found = [progress.snapshot() for progress in list(self._roles.values())]
        for metric in METRICS:
            if metric.read is not None:
                family = family_of(metric, [sample for one in found if one["role"] in metric.roles
                                            for sample in metric.read(one)])
                if family.samples:
                    yield family


class FunctionCollector(Collector):
    """Shows metrics that a function returns at each scrape: what is known elsewhere and not worth a copy."""

    def __init__(self, samples: Callable[[], Iterable[tuple[str, Samples]]]) -> None:
        self._samples = samples

    def describe(self) -> Iterable[Family]:
        """Return nothing: without this the registry would call the function to learn names."""
        return []

    def collect(self) -> Iterator[Family]:
        """Yield what the function returns."""
        for name, samples in self._samples():
            yield family_of(BY_NAME[name], samples)


def family_of(metric: Metric, samples: Samples) -> CounterMetricFamily | GaugeMetricFamily:
    """Return samples of one metric as prometheus-client takes them."""
    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    family = kind(metric.name, metric.help, labels=metric.labels)
    for labels, value in samples:
        family.add_metric(list(labels), float(value))
    return family


PROGRESS = ProgressCollector()
REGISTRY.register(PROGRESS)


def show(samples: Callable[[], Iterable[tuple[str, Samples]]]) -> None:
    """Show what a function returns: per metric its samples. It is called at each scrape, in another thread."""
    REGISTRY.register(FunctionCollector(samples))


def text(registry: CollectorRegistry = REGISTRY) -> bytes:
    """Return all metrics in Prometheus' text format."""
    return generate_latest(registry)
