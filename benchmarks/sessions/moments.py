"""Recorded texts: what a language model wrote about users at the ends of sessions, and the events that followed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from models.data.dataset import Dataset, FloatArray, IntArray
from models.data.sequences import Sequences
from schemas.errors import FreshetError

Kind = Literal["training", "first", "later"]
USERS = Path("knowledge", "users.jsonl")


class RecordedText(BaseModel):
    """A line of users.jsonl.

    `events` of the user's events came before the moment, and the next one came at `next_event_time`, seconds, later
    than the event before. A text that is not `clean` may have been written with later events in view.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    user_id: str
    moment: Kind
    events: int
    next_event_time: float
    keywords: str
    clean: bool = True


@dataclass(frozen=True, slots=True)
class SessionMoments:
    """m moments between two sessions of a user.

    Args:
        user: (m,) user rows.
        row: (m,) rows of the sequences: the first event of the session that follows.
        stop: (m,) end of the events with that same time. Their order is not known, so each is predicted from the
            events before `row`, and a figure of the moment is their mean.
        text: (m,) what the language model wrote from the events before `row`.
    """

    user: IntArray
    row: IntArray
    stop: IntArray
    text: list[str]

    def __len__(self) -> int:
        return len(self.user)

    def __getitem__(self, rows: IntArray) -> SessionMoments:
        return SessionMoments(
            self.user[rows], self.row[rows], self.stop[rows], [self.text[row] for row in rows.tolist()])


def read_moments(folder: Path, dataset: Dataset, sequences: Sequences) -> dict[Kind, SessionMoments]:
    """Return the clean moments of each kind, in order of time.

    Raises:
        FreshetError: the texts are missing, unreadable, or belong to other events.
    """
    path = folder / USERS
    users = {name: row for row, name in enumerate(dataset.users)}
    times = times_of(dataset, sequences)
    found: dict[Kind, list[tuple[float, int, int, int, str]]] = {"training": [], "first": [], "later": []}
    for number, line in _lines(path):
        try:
            text = RecordedText.model_validate_json(line)
        except ValidationError as error:
            raise FreshetError(f"{path}, line {number}: {_first(error)}") from error
        user = users.get(text.user_id, -1)
        row = int(sequences.offsets[user]) + text.events
        if user < 0 or not sequences.offsets[user] < row < sequences.offsets[user + 1] or (
                times[row] != text.next_event_time or times[row] <= times[row - 1]):
            raise FreshetError(f"{path}, line {number}: user {text.user_id} has no session that begins after "
                               f"{text.events} events; these texts were written from other events")
        if text.clean:
            end = int(sequences.offsets[user + 1])
            stop = row + int(np.searchsorted(times[row:end], times[row], "right"))
            found[text.moment].append((text.next_event_time, user, row, stop, text.keywords))
    for kind, some in found.items():
        if not some:
            raise FreshetError(f"{path} has no clean moment of the kind {kind!r}")
    return {kind: _columns(some) for kind, some in found.items()}


def times_of(dataset: Dataset, sequences: Sequences) -> FloatArray:
    """Return the times of the rows of `sequences`, seconds."""
    return dataset.events.time[sequences.index]


def _columns(found: list[tuple[float, int, int, int, str]]) -> SessionMoments:
    _, user, row, stop, text = zip(*sorted(found), strict=True)
    return SessionMoments(np.array(user), np.array(row), np.array(stop), list(text))


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        with path.open(encoding="utf-8") as file:
            yield from ((number, line) for number, line in enumerate(file, 1) if line.strip())
    except FileNotFoundError as error:
        raise FreshetError(
            f"{path} does not exist. The benchmark needs texts that a language model wrote about users, one JSON "
            "object a line; docs/sessions.md names the fields. --data takes the folder that holds events.csv, "
            "items.jsonl and knowledge/") from error


def _first(error: ValidationError) -> str:
    found = error.errors()[0]
    return f"{'.'.join(map(str, found['loc'])) or 'the line'}: {found['msg']}"
