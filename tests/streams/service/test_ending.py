"""A process that crashed, or that was told to stop, ends in bounded time, whatever Faust's shutdown waits for."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from schemas.liveness import STALLED_EXIT, ready_file
from streams.service.watchdog import CRASH_S
from tests.streams.service.test_app import Role, make_events, produce, value
from tests.workers.brokers import kill_broker, start_broker

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

# What four of eleven crashes with a full disk met: Faust waits for streams that will never acknowledge.
SHUTDOWN_HANGS = """
import asyncio, faust
async def hang(self):
    await asyncio.Event().wait()
faust.App.on_stop = hang
"""
DISK_FULL = """
from streams.service.table import UserTable
def fail(self, partition, states):
    raise OSError(28, "No space left on device")
UserTable.put = fail
"""
STOPS_SOON = "import streams.service.watchdog; streams.service.watchdog.STOP_S = 2.0\n"


@pytest.fixture
def role(tmp_path: Path) -> Iterator[Role]:
    broker = start_broker("embedded", tmp_path)
    made = Role(broker.bootstrap, tmp_path / "home")
    yield made
    if made.process is not None and made.process.poll() is None:
        made.process.kill()
    kill_broker(broker)


def test_a_crash_ends_the_process_even_if_its_shutdown_hangs(role: Role) -> None:
    role.start(SHUTDOWN_HANGS + DISK_FULL)
    role.wait_ready()
    assert role.process is not None
    produce(role.settings.kafka.bootstrap, [("behaviour-events", b"u0", value(make_events(1)[0]), {})])
    role.wait(lambda: not ready_file(role.settings.home, "streams").exists())
    crashed = time.monotonic()
    assert role.process.wait(CRASH_S + 10) == 1
    assert time.monotonic() - crashed > CRASH_S / 2, "the shutdown did not hang"
    assert "No space left on device" in role.log.read_text()


def test_a_stop_ends_the_process_even_if_its_shutdown_hangs(role: Role) -> None:
    role.start(SHUTDOWN_HANGS + STOPS_SOON)
    role.wait_ready()
    assert role.end(signal.SIGTERM) == STALLED_EXIT
    assert "told to stop" in role.log.read_text()
    assert not ready_file(role.settings.home, "streams").exists()
