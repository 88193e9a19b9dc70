from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import files
from schemas.files import write_whole, written_whole

SIZE = 300_000  # bytes: several calls to write
WRITER = f"""
import sys
from pathlib import Path
from schemas.files import write_whole, written_whole

path, letter = Path(sys.argv[1]), sys.argv[2].encode()
print("writes", flush=True)
while True:
    with written_whole(path, durable=False) as scratch, scratch.open("wb") as file:
        for _ in range(30):
            file.write(letter * {SIZE // 30})
            file.flush()
"""


@contextmanager
def umask(value: int) -> Iterator[None]:
    before = os.umask(value)
    try:
        yield
    finally:
        os.umask(before)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def writer(path: Path, letter: str) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(path), letter], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "writes\n"
    return process


def whole(path: Path) -> bool:
    content = path.read_bytes()
    return len(content) == SIZE and len(set(content)) == 1


@given(st.lists(st.tuples(st.binary(max_size=50), st.sampled_from(["ends", "raises first", "raises last"]))))
def test_the_last_write_that_ended_is_there_and_nothing_else(writes: list[tuple[bytes, str]]) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "made" / "file.json"
        expected = None
        for content, how in writes:
            with suppress(ZeroDivisionError), written_whole(path) as scratch:
                assert how != "raises first" or 1 // 0
                scratch.write_bytes(content)
                assert how != "raises last" or 1 // 0
                expected = content
        assert (path.read_bytes() if path.exists() else None) == expected
        assert sorted(Path(folder).rglob("*.*")) == ([] if expected is None else [path])


def test_a_folder_appears_with_all_that_is_in_it_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "model"

    def write(content: bytes, error: Exception | None = None) -> None:
        with written_whole(path) as scratch:
            (scratch / "inner").mkdir(parents=True)
            (scratch / "inner" / "weights").write_bytes(content)
            assert not path.exists() or content == b"another"
            if error:
                raise error

    with pytest.raises(OSError, match="full"):
        write(b"half", OSError("the disk is full"))
    assert list(tmp_path.iterdir()) == []
    write(b"whole")
    with pytest.raises(OSError, match="not empty"):
        write(b"another")  # the first one stays: it may be in use
    assert list(tmp_path.iterdir()) == [path]
    assert (path / "inner" / "weights").read_bytes() == b"whole"


def test_a_block_that_makes_nothing_is_an_error(tmp_path: Path) -> None:
    write_whole(tmp_path / "file", b"before")
    with pytest.raises(FileNotFoundError), written_whole(tmp_path / "file"):
        pass
    assert (tmp_path / "file").read_bytes() == b"before"


def test_readers_see_whole_files_while_two_processes_write_and_are_killed(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_whole(path, b"0" * SIZE)
    seen = set()
    for turn in range(5):
        writers = [writer(path, letter) for letter in "ab"]
        try:
            until = time.monotonic() + 0.3
            while time.monotonic() < until:
                assert whole(path)
                seen.add(path.read_bytes()[:1])
        finally:
            for process in writers:
                process.kill()
                process.communicate()
        assert whole(path), turn
    assert seen >= {b"a", b"b"}
    assert list(tmp_path.glob("*.json")) == [path]  # what the killed ones left is never taken for a file


def test_threads_of_a_process_do_not_share_a_scratch(tmp_path: Path) -> None:
    path, ended, errors = tmp_path / "file", threading.Event(), []

    def write(letter: bytes) -> None:
        try:
            while not ended.is_set():
                write_whole(path, letter * SIZE, durable=False)
        except OSError as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(letter,)) for letter in (b"a", b"b", b"c")]
    for thread in threads:
        thread.start()
    try:
        until = time.monotonic() + 0.5
        while time.monotonic() < until:
            assert not path.exists() or whole(path)
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert errors == []
    assert list(tmp_path.iterdir()) == [path]


def test_content_is_on_the_disk_before_the_name_and_the_name_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    done: list[tuple[str, str]] = []
    really_sync, really_replace = os.fsync, Path.replace

    def fsync(handle: int) -> None:
        done.append(("sync", Path(f"/dev/fd/{handle}").resolve().name))
        really_sync(handle)

    def replace(self: Path, target: Path) -> Path:
        done.append(("rename", target.name))
        return really_replace(self, target)

    monkeypatch.setattr(files.os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace)
    write_whole(tmp_path / "quick", b"x", durable=False)
    assert done == [("rename", "quick")]
    done.clear()
    with written_whole(tmp_path / "model") as scratch:
        scratch.mkdir()
        (scratch / "weights").write_bytes(b"w")
    assert done == [("sync", "weights"), ("sync", scratch.name), ("rename", "model"), ("sync", tmp_path.name)]


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o000, 0o077])
def test_modes_are_the_umasks(tmp_path: Path, mask: int) -> None:
    with umask(mask):
        write_whole(tmp_path / "plain", b"x")
        with written_whole(tmp_path / "file") as scratch:
            scratch.touch(0o600)
        with written_whole(tmp_path / "folder") as scratch:
            (scratch / "inner").mkdir(0o700, parents=True)
            scratch.chmod(0o700)  # as tempfile makes folders
            (scratch / "inner" / "weights").touch(0o600)
    for name in ("plain", "file", "folder/inner/weights"):
        assert mode(tmp_path / name) == 0o666 & ~mask, name
    for name in ("folder", "folder/inner"):
        assert mode(tmp_path / name) == 0o777 & ~mask, name
