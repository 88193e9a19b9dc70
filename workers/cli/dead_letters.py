"""`freshet dead-letters`: which records could not be used and why; one of them with its bytes; send them again."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.console import Console

from schemas.codec import decode
from schemas.errors import FreshetError, PoisonError
from schemas.messages import DeadLetter
from schemas.settings import KafkaSettings, load
from schemas.topics import DEAD_LETTERS, TOPICS
from workers.home.titles import Titles, read_titles
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

    settings = connected(load())
    found = [letter for letter in read(settings.kafka, last)
             if (not topic or letter.topic == topic) and reason.lower() in letter.reason.lower()]
    console = Console(highlight=False)
    if show:
        _show(console, found, show, read_titles(settings.home))
        return
    if not found:
        console.print("There are no dead letters" + (" like that." if topic or reason else "."))
        return
    if not replay:
        _list(console, by_kind(found))
        return
    good, bad = replayable(found, TOPICS)
    sent = _send(settings.kafka, good)
    console.print(f"{sent:,} records were sent to their topics again.")
    for why, count in bad.items():
        console.print(f"{count:,} were not: {why}.")
    if bad and not good:
        raise typer.Exit(1)


def read(kafka: KafkaSettings, last: int) -> list[DeadLetter]:
    """Return the newest dead letters, in the order in which they were written.

    Raises:
        FreshetError: the broker does not answer.
    """
    from workers.kafka.reader import read_all

    letters = []
    for message in read_all(kafka, [DEAD_LETTERS.name], last=last, within_s=120.0):
        try:
            letters.append(decode(DeadLetter, message.value()))
        except PoisonError:  # not written by Freshet
            continue
    return letters


def _list(console: Console, kinds: Sequence[LetterKind]) -> None:
    now = time.time()
    for kind in kinds:
        example = f"{kind.topic}/{kind.newest[0]}/{kind.newest[1]}"
        console.print(f"{kind.count:,} of {kind.topic}, the last {ago(now, kind.last)}: {plain(kind.reason, 300)}",
                      markup=False, soft_wrap=True)
        console.print(f"    --show {example}", markup=False, soft_wrap=True)
    console.print("--show shows a record with its bytes, --replay sends records again.", markup=False)


def _show(console: Console, letters: list[DeadLetter], place: str, titles: Titles) -> None:
    parts = place.rsplit("/", 2)
    wanted = [letter for letter in letters if [letter.topic, str(letter.partition), str(letter.offset)] == parts]
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


def _send(kafka: KafkaSettings, letters: list[DeadLetter]) -> int:
    from confluent_kafka import KafkaError, Message, Producer

    from workers.kafka.configuration import producer
    client = Producer(producer(kafka, log_level=2))
    failed: list[KafkaError] = []
    sent = 0

    def done(error: KafkaError | None, _: Message) -> None:
        nonlocal sent
        if error is None:
            sent += 1
        else:
            failed.append(error)

    for letter in letters:
        while True:
            try:
                client.produce(letter.topic, value_of(letter), key_of(letter), headers=headers_of(letter),
                               on_delivery=done)
                break
            except BufferError:
                client.poll(0.5)
        client.poll(0)
    left = client.flush(60.0)
    if failed or left:
        raise FreshetError(f"{sent:,} records were sent again; {len(failed) + left:,} were not: "
                           f"{failed[0].str() if failed else 'the broker does not answer'}")
    return sent


def plain(text: str, limit: int) -> str:
    """Return text that a terminal does not obey, at most `limit` characters."""
    shown = "".join(letter if letter.isprintable() or letter == "\n" else letter.encode("unicode_escape").decode()
                    for letter in text[:limit])
    return shown + ("…" if len(text) > limit else "")
