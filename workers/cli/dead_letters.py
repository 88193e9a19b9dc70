"""`freshet dead-letters`: which records could not be used and why; one of them with its bytes; send them again."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.console import Console

from schemas.errors import FreshetError
from schemas.messages import DeadLetter
from schemas.settings import Settings, load
from schemas.topics import TOPICS
from workers.measurement.dead_letters import LetterKind, by_kind, headers_of, key_of, replayable, value_of
from workers.terminal.durations import ago

_SHOWN = 2000  # characters of a record


def dead_letters(
    topic: Annotated[str, typer.Option(help="Only records of this topic.")] = "",
    reason: Annotated[str, typer.Option(help="Only letters whose reason contains this text.")] = "",
    show: Annotated[str, typer.Option(
        metavar="TOPIC/PARTITION/OFFSET", help="Show one record: its bytes, its key and the whole reason.")] = "",
    replay: Annotated[bool, typer.Option(
        "--replay", help="Send the records to their topics again, for example after a setting was corrected.")] = False,
    last: Annotated[int, typer.Option(help="Read this many of the newest letters.")] = 100_000,
) -> None:
    """List dead letters by reason, show one, or send them again.

    A letter stays in its topic after it was sent again. Events sent again that were applied meanwhile are duplicates
    and change nothing.

    Examples:

    `freshet dead-letters`

    `freshet dead-letters --show behaviour-events/2/1042`

    `FRESHET_EVENTS_FIELDS=user_id=visitorid freshet up`, and then
    `freshet dead-letters --reason "user_id: missing" --replay`
    """
    from workers.home.stack_info import connected
    from workers.operating.letters import read_letters, send_again

    settings = connected(load())
    topics = (topic, settings.kafka.full(topic))
    found = [letter for letter in read_letters(settings.kafka, last)
             if (not topic or letter.topic in topics) and reason.lower() in letter.reason.lower()]
    console = Console(highlight=False)
    if show:
        _show(console, found, show, settings)
        return
    if not found:
        console.print("There are no dead letters" + (" like that." if topic or reason else "."))
        return
    if not replay:
        _list(console, by_kind(found))
        return
    good, bad = replayable(found, map(settings.kafka.full, TOPICS))
    sent = send_again(settings.kafka, good)
    console.print(f"{sent:,} records were sent to their topics again.")
    for why, count in bad.items():
        console.print(f"{count:,} were not: {why}.")
    if bad and not good:
        raise typer.Exit(1)


def _list(console: Console, kinds: Sequence[LetterKind]) -> None:
    now = time.time()
    for kind in kinds:
        example = f"{kind.topic}/{kind.newest[0]}/{kind.newest[1]}"
        console.print(f"{kind.count:,} of {kind.topic}, the last {ago(now, kind.last)}: {plain(kind.reason, 300)}",
                      markup=False, soft_wrap=True)
        console.print(f"    --show {example}", markup=False, soft_wrap=True)
    console.print("--show shows a record with its bytes, --replay sends records again.", markup=False)


def _show(console: Console, letters: list[DeadLetter], place: str, settings: Settings) -> None:
    from workers.catalogue.titles import known_titles

    topic, *parts = place.rsplit("/", 2)
    titles = known_titles(settings)
    wanted = [letter for letter in letters if letter.topic in (topic, settings.kafka.full(topic))
              and [str(letter.partition), str(letter.offset)] == parts]
    if not wanted:
        raise FreshetError(f"there is no dead letter of {place}; `freshet dead-letters` lists them")
    letter = wanted[-1]
    value, key = value_of(letter), key_of(letter)
    console.print(f"{place}, {ago(time.time(), letter.failed_at)}, in {letter.role}")
    console.print(f"reason: {plain(letter.reason, 2 * _SHOWN)}", markup=False)
    who = "none" if key is None else plain(key.decode("utf-8", "backslashreplace"), 300)
    console.print(f"key: {who}", markup=False)
    for name, data in headers_of(letter):
        console.print(f"header {plain(name, 300)}: {plain((data or b'').decode('utf-8', 'backslashreplace'), 300)}",
                      markup=False)
    if named := titles.within(value):
        console.print(f"items in it: {plain(named, 300)}", markup=False)
    console.print(f"value, {len(value):,} bytes:", markup=False)
    console.print(plain(value.decode("utf-8", "backslashreplace"), _SHOWN), markup=False)


def plain(text: str, limit: int) -> str:
    """Return text that a terminal does not obey, at most `limit` characters."""
    shown = "".join(letter if letter.isprintable() or letter == "\n" else letter.encode("unicode_escape").decode()
                    for letter in text[:limit])
    return shown + ("…" if len(text) > limit else "")
