"""The key of the embedded store: new for every run, in a file that only the user who runs it can read.

The store listens on this machine, where every user's programs and every page in a browser can reach it.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from workers.home.lock import run_folder


def new_key() -> str:
    """Return a key that nobody can guess."""
    return secrets.token_urlsafe(32)


def keep_key(home: Path, url: str, key: str) -> None:
    """Write the key of the store at `url` for other commands of the same user."""
    path = _file(home)
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    scratch.parent.mkdir(parents=True, exist_ok=True)
    # Created with its mode: between a creation and a chmod others could open it.
    with os.fdopen(os.open(scratch, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as out:
        out.write(f"{url}\n{key}\n")
    scratch.replace(path)


def kept_key(home: Path, url: str) -> str:
    """Return the key of the store at `url`; "" if it is not this home's embedded store, or of another user."""
    try:
        of, _, key = _file(home).read_text(encoding="utf-8").partition("\n")
    except (OSError, UnicodeDecodeError):
        return ""
    return key.strip() if of == url else ""


def drop_key(home: Path) -> None:
    """Remove the file."""
    _file(home).unlink(missing_ok=True)


def _file(home: Path) -> Path:
    return run_folder(home) / "store.key"
