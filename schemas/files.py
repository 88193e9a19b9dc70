"""Files and folders written whole or not at all: beside their place first, then renamed into it.

A reader sees what was there before or all of what is there now, also when the writer raises, is killed, or is one of
two. A writer that is killed leaves its scratch, a hidden name that ends in `.part`; nothing ever reads it.

Modes are the umask's, 0666 and 0777 less its bits, whatever the writer chose: `tempfile` and safetensors (0.8) make
files of mode 0600, which roles that run as another user cannot read.

What is written is on the disk when the call returns, unless it is told `durable=False`. A rename may outlive a power
failure that the content does not, and an empty file under its final name is what this module is there to prevent: a
model, a log of what is in use, evidence, and also a cache that took hours and is believed when it is found. It costs
0.3 ms for 1 kB and 5 ms for 10 MB on a virtual machine's disk. Only files in which a running process says how it is do
without: they are written every second, and after a power failure that process no longer runs.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from stat import S_IMODE


def write_whole(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Write a file, making its folder where there is none.

    Args:
        durable: it is on the disk afterwards.
    """
    with written_whole(path, durable=durable) as scratch:
        scratch.write_bytes(data)


@contextmanager
def written_whole(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield an unused path beside `path`; the file or folder that the block makes there becomes `path` at its end.

    A file replaces the one at `path`. If the block raises, nothing changes and nothing is left.

    Args:
        durable: it is on the disk afterwards.

    Raises:
        OSError: what is at `path` cannot be replaced, such as a folder that is not empty.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not the process id: threads share it, and processes in two containers may. The end is not the target's: a `glob`
    # for that does not find it.
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    scratch.mkdir()  # shows the mode of new folders; asking the umask would change it for all threads
    mode = S_IMODE(scratch.stat().st_mode)
    scratch.rmdir()
    try:
        yield scratch
        for part in [*scratch.rglob("*"), scratch]:
            with suppress(PermissionError):  # a mount with one mode for everything
                part.chmod(mode if part.is_dir() else mode & 0o666)
            if durable:
                sync(part)
        scratch.replace(path)
    except BaseException:
        if scratch.is_dir():
            shutil.rmtree(scratch, ignore_errors=True)
        else:
            scratch.unlink(missing_ok=True)
        raise
    if durable:
        with suppress(OSError):  # the content is there; some network file systems cannot sync a folder's entries
            sync(path.parent)


def sync(path: Path) -> None:
    """Wait until a file's content or a folder's entries are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
