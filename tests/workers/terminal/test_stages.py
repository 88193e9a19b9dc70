import io
import signal
import time
from collections.abc import Iterator

import pytest
from rich.console import Console

from schemas.errors import StalledError
from workers.terminal.stages import Stages


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """Restore SIGINT: a shell starts background jobs with SIGINT ignored, and then nothing can be interrupted."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def quiet() -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, force_terminal=False), out


def test_without_a_terminal_stages_print_lines() -> None:
    console, out = quiet()
    with Stages(console) as stages:
        with stages.stage("first", 60) as step:
            step(1, 2, "loss 3")
        stages.reused("second")
    assert "first: done in" in out.getvalue()
    assert "second: unchanged, reused" in out.getvalue()
    assert stages.times["second"]["reused"]
    assert not stages.times["first"]["reused"]


def test_a_stage_without_progress_is_named() -> None:
    console, _ = quiet()

    def hang() -> None:
        with Stages(console) as stages, stages.stage("slow", 0.3):
            while True:
                time.sleep(0.05)

    with pytest.raises(StalledError, match=r"slow: no progress for 0"):
        hang()


def test_progress_keeps_a_stage_alive() -> None:
    console, _ = quiet()
    with Stages(console) as stages, stages.stage("steady", 0.5) as step:
        for done in range(12):
            time.sleep(0.1)
            step(done, 12)


def test_the_time_between_stages_does_not_count() -> None:
    console, _ = quiet()
    with Stages(console) as stages:
        with stages.stage("quick", 0.5):
            pass
        time.sleep(1.2)
