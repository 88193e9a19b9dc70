"""`/metrics`, `/healthz`, `/livez` and `/readyz` of the supervisor and of every role.

| path | 200 means | for |
|---|---|---|
| `/healthz` | the stack (a role: it) makes progress; the body is JSON with the reasons if not | alerts, readiness |
| `/readyz` | the stack (a role: it) has its partitions and states | readiness |
| `/livez` | the process has written its counters within 10 s | restarts, where nothing else supervises it |
| `/metrics` | – | Prometheus; docs/metrics.md lists them |

Health reads files only, so the supervisor answers also when its own loop hangs, and says so.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict

import orjson

from schemas.settings import Settings
from schemas.watch.instruments import CONTENT_TYPE, show, text
from schemas.watch.table import STATES, Samples
from workers.home.stack_info import ProcessReport, find
from workers.supervision.endpoints import Door, Endpoints, Reply
from workers.supervision.health import Health, RoleHealth, read, read_role

# A role's port is the supervisor's plus this.
PORTS = {"supervisor": 0, "streams": 1, "knowledge": 2, "ranking": 3, "guard": 4, "alignment": 5, "store": 6,
         "console": 7}


def role_server(settings: Settings, role: str) -> Endpoints:
    """Return the server of a role's process; it does nothing with `metrics.port` 0."""
    def health() -> RoleHealth:
        return read_role(settings, role, time.monotonic())

    return Endpoints({
        "/metrics": _metrics,
        "/healthz": lambda: _json(asdict(health()), health().state == "ok"),
        "/readyz": lambda: _json({"state": health().state}, health().state not in ("starting", "crashed", "hung")),
        "/livez": lambda: _json({"state": health().state}, health().state != "hung"),
    }, _doors(settings, role), required=False)


class HealthServer(Endpoints):
    """The supervisor's server, on `health.port` and `metrics.port`; it does nothing where both are 0."""

    def __init__(self, settings: Settings) -> None:
        def health() -> Health | None:
            return read(settings, time.monotonic())

        def healthz() -> Reply:
            found = health()
            body = {"state": "not running", "reasons": []} if found is None else asdict(found)
            return _json(body, found is not None and found.state == "ok")

        def readyz() -> Reply:
            running = find(settings.home)
            ready = running is not None and running.ready and all(one.ready for one in running.processes.values())
            return _json({"ready": ready}, ready)

        def livez() -> Reply:
            found = health()
            alive = found is None or not any(reason.startswith("the supervisor") for reason in found.reasons)
            return _json({"alive": alive}, alive)

        self._watched = settings
        ports = [Door(settings.health.host, settings.health.port, "FRESHET_HEALTH_PORT")]
        super().__init__({"/metrics": _metrics, "/healthz": healthz, "/readyz": readyz, "/livez": livez},
                         [door for door in ports if door.port] + _doors(settings, "supervisor"), required=True)

    def start(self) -> None:
        """Start to listen, and show the stack's health as metrics.

        Raises:
            FreshetError: a port is taken.
        """
        show(self._samples)
        super().start()

    def _samples(self) -> Iterator[tuple[str, Samples]]:
        running, found = find(self._watched.home), read(self._watched, time.monotonic())
        if running is None or found is None:
            return
        roles: dict[str, ProcessReport] = running.processes
        yield "freshet_role_up", [((name,), one.running) for name, one in roles.items()]
        yield "freshet_role_ready", [((name,), one.running and one.ready) for name, one in roles.items()]
        yield "freshet_role_restarts_total", [((name,), one.restarts) for name, one in roles.items()]
        yield "freshet_role_failures", [((name,), one.failures) for name, one in roles.items()]
        yield "freshet_health", [((state,), state == found.state) for state in STATES]


def _doors(settings: Settings, name: str) -> list[Door]:
    metrics = settings.metrics
    return [Door(metrics.host, metrics.port + PORTS[name], "FRESHET_METRICS_PORT")] if metrics.port else []


def _metrics() -> Reply:
    return Reply(text(), CONTENT_TYPE)


def _json(body: object, good: bool) -> Reply:
    return Reply(orjson.dumps(body), good=good)
