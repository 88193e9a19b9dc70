"""What the pages say can be run is run, as it stands there: in the order of a reader, on an embedded stack.

Two things differ from a reader's machine: ports, and models that are small enough for a test.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT, blocks, lines
from tests.models import tiny
from tests.system.world import write_data
from workers.supervision.broker import free_port

pytestmark = pytest.mark.slow
READING = ("docs/start.md", "docs/connect.md")  # later pages use what earlier ones started
# What runs until Ctrl-C, and what it must have printed to count as working.
ENDLESS = {"freshet up": "ready", "freshet tail": '"user_id"', "for record in consumer": "42 ["}
# What a reader would look at again a moment later: what it shows is on its way.
LATER = ("freshet user",)


def commands() -> Iterator[tuple[str, str, str]]:
    """Yield place, language and text of what is run: shell line by line, Python whole."""
    for page in READING:
        for block in blocks():
            if block.page == page and block.kind == "run":
                if block.language == "sh":
                    for text in lines(block.text):
                        yield str(block), "sh", text.partition("  #")[0]
                else:
                    yield str(block), block.language, block.text


class Reader:
    """A folder as `make` leaves it, with a shop's data in `DIR`, in which commands are typed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.running = ExitStack()
        data = write_data(folder / "DIR")
        for name in ("events.csv", "items.jsonl"):  # the pages speak of user 42 and item 50
            text = (data / name).read_text()
            (data / name).write_text(text.replace("u42,", "42,").replace(",i50,", ",50,").replace('"i50"', '"50"'))
        programs = folder / ".venv" / "bin"
        programs.mkdir(parents=True)
        (programs / "freshet").write_text(f'#!/bin/sh\nexec {sys.executable} -m workers.cli "$@"\n')
        (programs / "freshet").chmod(0o755)
        self.environ = {name: value for name, value in os.environ.items() if not name.startswith("FRESHET_")} | {
            "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1",
            "FRESHET_HOME": str(folder / "home"),
            "FRESHET_LLM_NAME": str(tiny.save(folder / "llm")), "FRESHET_LLM_DEVICE": "cpu", "FRESHET_FIT_DIM": "16",
            "FRESHET_FIT_EPOCHS": "3", "FRESHET_FIT_KNOWLEDGE_EPOCHS": "1", "FRESHET_FIT_INSTRUCTIONS": "3",
            "FRESHET_FIT_CODES": "8", "FRESHET_FIT_PARTS": "on", "FRESHET_ITEMS_ENCODER": "none",
            "FRESHET_KAFKA_SESSION_TIMEOUT_S": "3", "FRESHET_CONSOLE_PORT": str(free_port())}

    def type(self, number: int, language: str, text: str) -> None:
        """Run what stands in a page, until it ends or, if it is endless, works."""
        text = text.replace("9092", str(self.port))
        shell = ["bash", "-c", f"exec {text}"] if language == "sh" else [sys.executable, "-c", text]
        output = self.folder / f"{number}.log"
        expected = next((sign for begin, sign in ENDLESS.items() if begin in text), None)
        deadline = time.monotonic() + 240
        while True:
            with output.open("wb") as out:
                child = subprocess.Popen(shell, cwd=self.folder, env=self.environ, stdout=out, stderr=out)
            self.running.callback(stop, child)
            while child.poll() is None and (expected is None or expected not in output.read_text()):
                assert time.monotonic() < deadline, output.read_text()[-3000:]
                time.sleep(0.2)
            if (child.poll() == 0) if expected is None else (child.poll() is None):
                return
            again = expected is None and any(begin in text for begin in LATER) and time.monotonic() < deadline
            assert again, f"{text}: exit code {child.poll()}\n{output.read_text()[-3000:]}"


def stop(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        child.wait(30)
    finally:
        child.kill()


@pytest.mark.timeout(600)
def test_what_can_be_run_is_run(tmp_path: Path) -> None:
    reader = Reader(tmp_path)
    typed = list(commands())
    assert {begin for begin in ENDLESS if any(begin in text for _, _, text in typed)} == set(ENDLESS)
    with reader.running:
        for number, (place, language, text) in enumerate(typed):
            try:
                reader.type(number, language, text)
            except AssertionError as error:
                raise AssertionError(f"{place}: {error}") from error


def test_no_other_page_has_what_is_never_run() -> None:
    assert {block.page for block in blocks() if block.kind == "run"} == set(READING)
