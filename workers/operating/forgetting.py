"""Erasure of a user: asked for, waited for, looked at, and reported with what retention still holds.

The roles do the work, each on what it owns (docs/erasure.md); this asks them and sees that they did.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from schemas.errors import FreshetError
from schemas.files import write_whole
from schemas.messages import ERASED, Erasure
from schemas.settings import KafkaSettings, Settings
from schemas.topics import (
    ALIGNMENT_SAMPLES,
    BEHAVIOUR_EVENTS,
    CHANGELOG,
    DEAD_LETTERS,
    ERASURES,
    JUDGEMENTS,
    KNOWLEDGE_REQUESTS,
    KNOWLEDGE_UPDATES,
    RANKING_REQUESTS,
    RECOMMENDATIONS,
    USER_SEEN,
)
from streams.service.outbox import partition_of
from workers.kafka.lag import GUARD_GROUP, KNOWLEDGE_GROUP, RANKING_GROUP, STREAMS_GROUP, GroupLag
from workers.kafka.outbox import Outbox, Output
from workers.kafka.reader import read_since, watermarks
from workers.kafka.topics import keeping_times, partitions
from workers.measurement.dead_letters import of_user
from workers.operating.letters import read_letters
from workers.store.qdrant import QdrantStore

# In the order in which one waits for the other: ranking ends also the requests that it sent to knowledge itself.
STEPS = (("streams", STREAMS_GROUP, ERASURES.name), ("ranking", RANKING_GROUP, RANKING_REQUESTS.name),
         ("knowledge", KNOWLEDGE_GROUP, KNOWLEDGE_REQUESTS.name), ("guard", GUARD_GROUP, JUDGEMENTS.name))
# Of each of them only the newest record of a user stays.
COMPACTED = (CHANGELOG, KNOWLEDGE_REQUESTS.name, KNOWLEDGE_UPDATES.name, RECOMMENDATIONS.name)
_APPENDED = {
    BEHAVIOUR_EVENTS.name: "events", USER_SEEN.name: "that the user was here",
    RANKING_REQUESTS.name: "histories sent to ranking", JUDGEMENTS.name: "margins",
    ALIGNMENT_SAMPLES.name: "histories with a contradiction", ERASURES.name: "that the user was erased"}
_TRIES = 3
_ASK_S = 0.2


@dataclass(frozen=True, slots=True)
class StillHeld:
    """A place that still holds records of the user, which nobody reads for more than what is on its way.

    Args:
        until: wall clock, seconds; None = it is not known when, or never.
        why: what it holds and what ends it.
    """

    where: str
    until: float | None
    why: str


@dataclass(slots=True)
class ErasureReport:
    """What an erasure found and removed.

    Args:
        removed: place → what was removed there; empty = nothing was known of the user.
        late: roles that have not done their part in time; they will when they run.
        back: places where records of the user came after the erasure: events that came later start a new user.
        held: what retention still holds.
        notes: what else to know.
    """

    user_id: str
    removed: dict[str, str] = field(default_factory=dict)
    late: list[str] = field(default_factory=list)
    back: list[str] = field(default_factory=list)
    held: list[StillHeld] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def forget(settings: Settings, user_id: str, within_s: float, clock: Callable[[], float] = time.time) -> ErasureReport:
    """Have the running roles erase a user, see that they did, and erase what the home holds.

    Args:
        settings: of broker and store, as the stack has them.
        within_s: how long to wait for the roles.
        clock: wall clock, seconds.

    Raises:
        FreshetError: the broker does not answer or has no topic of erasures.
    """
    kafka, report = settings.kafka, ErasureReport(user_id)
    key = user_id.encode("utf-8", "surrogatepass")
    numbers = partitions(kafka, [ERASURES.name])
    if ERASURES.name not in numbers:
        raise FreshetError(f"there is no topic {kafka.full(ERASURES.name)} at {kafka.bootstrap}; "
                           "`freshet topics --create` creates it")
    place = partition_of(key, numbers[ERASURES.name])
    deadline = time.monotonic() + within_s
    for _ in range(_TRIES):
        marks = {(topic, place): parts[place][1] for topic, parts in
                 watermarks(kafka, [*COMPACTED, RANKING_REQUESTS.name]).items()}
        _ask(kafka, user_id, clock())
        report.late = _wait(kafka, place, deadline)
        report.back = _look(kafka, key, marks, report.removed)
        if report.late or not report.back:
            break
    if settings.qdrant.url and "knowledge" not in report.late and _in_store(settings, user_id):
        report.back.append("the knowledge store")
    _home(settings.home, user_id, report)
    _retention(kafka, user_id, report, clock())
    return report


def _ask(kafka: KafkaSettings, user_id: str, now: float) -> None:
    outbox = Outbox(kafka, "operator")
    try:
        outbox.send([Output(ERASURES, user_id, Erasure(user_id=user_id, requested_at=now))])
    finally:
        outbox.close()


def _wait(kafka: KafkaSettings, place: int, deadline: float) -> list[str]:
    """Return the roles that have not committed what was in their topic when it was their turn."""
    late = []
    for role, group, topic in STEPS:
        end = watermarks(kafka, [topic]).get(topic, [(0, 0)] * (place + 1))[place][1]
        lag = GroupLag(kafka, group)
        try:
            while (done := lag.offsets([(topic, place)])[topic, place][0]) < end and time.monotonic() < deadline:
                time.sleep(_ASK_S)
        finally:
            lag.close()
        if done < end:
            late.append(role)
            if role == "streams":  # the others learn of it from streams
                return [name for name, _, _ in STEPS]
    return late


def _look(
    kafka: KafkaSettings, key: bytes, marks: dict[tuple[str, int], int], removed: dict[str, str],
) -> list[str]:
    """Note in `removed` what the roles say that they removed; return the topics whose last record is no tombstone."""
    newest: dict[str, bool] = {}
    for record in read_since(kafka, marks):
        if record.key() != key:
            continue
        topic = kafka.plain(record.topic() or "")
        newest[topic] = record.value() is None
        if record.value() is None and dict(record.headers() or ()).get(ERASED, b"0") not in (b"0", None):
            if topic == RANKING_REQUESTS.name:
                removed["streams"] = "state, in memory, in RocksDB and in the changelog"
                removed["topics"] = f"newest record of {', '.join(COMPACTED[1:])}"
            elif topic == KNOWLEDGE_UPDATES.name:
                removed["store"] = "knowledge"
    return [kafka.full(topic) for topic, ended in newest.items() if not ended and topic != RANKING_REQUESTS.name]


def _in_store(settings: Settings, user_id: str) -> bool:
    store = QdrantStore.at(settings, settings.fit.dim)
    try:
        return bool(store.holds([user_id]))
    finally:
        store.close()


def _home(home: Path, user_id: str, report: ErasureReport) -> None:
    """Erase what was written of the user, and say what else may name him."""
    texts = home / "knowledge" / "users.jsonl"
    if texts.is_file():
        lines = texts.read_bytes().splitlines(keepends=True)
        kept = [line for line in lines if not _is_of(line, user_id)]
        if len(kept) < len(lines):
            write_whole(texts, b"".join(kept))
            report.removed["home"] = f"{len(lines) - len(kept):,} texts in {texts}"
    if aside := sorted((home / "streams").glob("aside-*")):
        report.notes.append(f"states put aside may hold the user, delete them: {', '.join(map(str, aside))}")
    named = [path.parent.name for path in sorted((home / "models").glob("*/users.json"))
             if user_id in orjson.loads(path.read_bytes())]
    if named:
        report.notes.append(f"models fitted on the user's events name the user: {', '.join(named)}; fit again without "
                            "these events and remove the versions")


def _is_of(line: bytes, user_id: str) -> bool:
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError:
        return False
    return isinstance(row, dict) and row.get("user_id") == user_id


def _retention(kafka: KafkaSettings, user_id: str, report: ErasureReport, now: float) -> None:
    kept = keeping_times(kafka, [*_APPENDED, *COMPACTED, DEAD_LETTERS.name])
    for topic, what in _APPENDED.items():
        report.held.append(StillHeld(kafka.full(topic), _until(now, kept.get(topic)), what))
    report.held += [StillHeld(kafka.full(topic), None, "older records, until the broker compacts the topic")
                    for topic in COMPACTED]
    letters = of_user(read_letters(kafka, 100_000), user_id)
    if letters:
        last = max(letter.failed_at for letter in letters)
        report.held.append(StillHeld(
            kafka.full(DEAD_LETTERS.name), _until(last, kept.get(DEAD_LETTERS.name)),
            f"{len(letters):,} unusable records with their bytes; `freshet user` lists them"))


def _until(since: float, seconds: float | None) -> float | None:
    return None if seconds is None else since + seconds


def lines_of(report: ErasureReport, date: Callable[[float], str]) -> list[str]:
    """Return the report as text.

    Args:
        date: writes a time.
    """
    out = [f"{place}: {what} removed" for place, what in report.removed.items()]
    if not out:
        out.append("nothing was known of this user" if not report.late else "nothing is removed yet")
    if report.late:
        out.append(f"not done yet: {', '.join(report.late)}; each does it when it runs and has come to it. Run this "
                   "command again to see")
    if report.back:
        out.append(f"came back: {', '.join(report.back)}; events that came after the erasure start a new user")
    out += report.notes
    out.append("kept by retention, and read by no role again:")
    for one in report.held:
        out.append(f"  {one.where}: {one.why}" + (f", at the latest until {date(one.until)}" if one.until else ""))
    return out
