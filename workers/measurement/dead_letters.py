"""What the dead letters say together: grouped by topic and kind of reason; which can be sent again, and as what."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from schemas.messages import DeadLetter

# What differs between letters of one kind: numbers, quoted values, lists of names after "has".
_VARIABLE = re.compile(r"\d+(\.\d+)?|'[^']*'|\"[^\"]*\"|(?<=the event has )[^;]*")
_CUT = re.compile(r"\(first \d+ of \d+ (bytes( of the key)?|headers) kept\)|\(cut to what the broker takes\)")


@dataclass(frozen=True, slots=True)
class LetterKind:
    """Letters of one topic with the same kind of reason.

    Args:
        reason: of the newest of them.
        newest: position of that record.
        last: when it failed, seconds since 1970.
        letters: themselves, in the order given.
    """

    topic: str
    reason: str
    count: int
    newest: tuple[int, int]
    last: float
    letters: tuple[DeadLetter, ...] = field(default=(), repr=False, compare=False)


def by_kind(letters: Iterable[DeadLetter]) -> list[LetterKind]:
    """Return the kinds of letters, the most frequent first."""
    groups: dict[tuple[str, str], list[DeadLetter]] = {}
    for letter in letters:
        groups.setdefault((letter.topic, _VARIABLE.sub("#", letter.reason)), []).append(letter)
    kinds = []
    for (topic, _), group in groups.items():
        newest = max(group, key=lambda letter: letter.failed_at)
        kinds.append(LetterKind(topic, newest.reason, len(group), (newest.partition, newest.offset), newest.failed_at,
                                tuple(group)))
    return sorted(kinds, key=lambda kind: (-kind.count, kind.topic, kind.reason))


def of_user(letters: Iterable[DeadLetter], user_id: str) -> list[DeadLetter]:
    """Return the letters whose key is the user's id, or whose value names it as a JSON text or number."""
    id_ = user_id.encode("utf-8", "surrogatepass")
    named = [b'"' + id_ + b'"']
    if user_id.isdecimal():
        named += [b":" + id_ + end for end in (b",", b"}")] + [b": " + id_ + end for end in (b",", b"}")]
    return [letter for letter in letters
            if key_of(letter) == id_ or any(name in value_of(letter) for name in named)]


def value_of(letter: DeadLetter) -> bytes:
    """Return the record's bytes."""
    return _decoded(letter.value)


def key_of(letter: DeadLetter) -> bytes | None:
    """Return the record's key."""
    return None if letter.key is None else _decoded(letter.key)


def headers_of(letter: DeadLetter) -> list[tuple[str, bytes | None]]:
    """Return the record's headers."""
    return [(name, None if data is None else _decoded(data)) for name, data in letter.headers]


def replayable(letters: Sequence[DeadLetter], topics: Iterable[str]) -> tuple[list[DeadLetter], dict[str, int]]:
    """Return the letters that can be sent to their topics again, and how many cannot, by the reason why.

    Args:
        topics: the topics there are.
    """
    good: list[DeadLetter] = []
    bad: dict[str, int] = {}
    known = set(topics)
    done: set[tuple[str, int, int]] = set()
    for letter in letters:
        place = letter.topic, letter.partition, letter.offset
        why = ("its topic is none of Freshet's" if letter.topic not in known else
               "its bytes were cut when the letter was written" if _CUT.search(letter.reason) else
               "the record is empty" if not letter.value else
               "another letter is about the same record" if place in done else "")
        done.add(place)
        if why:
            bad[why] = bad.get(why, 0) + 1
        else:
            good.append(letter)
    return good, bad


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):  # somebody else wrote this letter
        return text.encode("utf-8", "surrogatepass")
