"""`freshet describe`: has a language model write about items or users, and keeps what it wrote in the home folder.

Answers are kept as they arrive (`knowledge/answers.jsonl`), so a run that ends early goes on where it was. From them
and the catalogue follows the knowledge itself: `knowledge/items.jsonl`, `knowledge/users.jsonl`.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from filelock import FileLock, Timeout
from rich.console import Console

from models.data.dataset import Dataset
from models.data.written import PLACE, about, read_written
from schemas.errors import FreshetError
from schemas.files import write_whole
from schemas.settings import Settings
from workers.terminal.stages import Stages
from workers.writing.local import LocalProvider
from workers.writing.prompts import Prompt, prompt_named
from workers.writing.provider import Answer, Asked, Provider, ProviderError
from workers.writing.recorded import FILMS, Answers, RecordedProvider
from workers.writing.server import ServerProvider

USERS = Path("knowledge") / "users.jsonl"
KEPT = Path("knowledge") / "answers.jsonl"
READ_ITEMS, TITLE = 12, 80  # newest items of a user that the model reads, and characters of each
FEWEST_EVENTS = 2  # of a user worth describing: one item says no more than its own description
STALL_S = 1800.0  # seconds without an answer after which the stage counts as hung; retries take minutes
LINE = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Subject:
    """What is described.

    Args:
        input: text that the model reads.
        line: fields of its line in the knowledge file.
        identity: of the line: a new one replaces one of equal identity.
    """

    input: str
    line: LINE
    identity: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class DescribePlan:
    """What a run will ask.

    Args:
        kind: `items` or `users`.
        subjects: in the order in which they are asked.
        prompt: the packaged prompt.
        without_text: items or users of which there is nothing to read.
    """

    kind: str
    subjects: list[Subject]
    prompt: Prompt
    without_text: int = 0

    def missing(self, kept: dict[tuple[str, str], Answer], model: str) -> list[Asked]:
        """Return the questions that no kept answer of this model answers, equal ones once."""
        wanted = {(asked := self.prompt.asks(subject.input)).key: asked for subject in self.subjects}
        return [asked for key, asked in wanted.items() if (key, model) not in kept]


@dataclass(slots=True)
class DescribeAccount:
    """What became of a run: questions asked, answered, refused and left open, what it took, and lines written."""

    described: int = 0
    cached: int = 0
    asked: int = 0
    answered: int = 0
    refused: int = 0
    left_open: int = 0
    read: int = 0
    written: int = 0
    cost: float | None = 0.0
    seconds: float = 0.0
    reason: str = ""

    def lines(self, kind: str, path: Path) -> list[str]:
        """Return the account as text."""
        cost = "not known (no price is set)" if self.cost is None else f"{self.cost:.4f}".rstrip("0").rstrip(".")
        return [
            f"asked {self.asked:,}: answered {self.answered:,}, refused {self.refused:,}, left open "
            f"{self.left_open:,}; {self.cached:,} were answered before",
            *([f"the last refusal: {self.reason}"] if self.reason else []),
            f"tokens: {self.read:,} read, {self.written:,} written; cost: {cost}; {self.seconds:,.1f} s",
            f"{self.described:,} {kind} are described in {path}"]


def plan_items(dataset: Dataset, limit: int = 0) -> DescribePlan:
    """Return the plan for a catalogue, the items with most events first.

    Args:
        limit: describe at most so many; 0 = all.
    """
    counts = np.bincount(dataset.events.item, minlength=len(dataset.items))
    rows = [row for row in np.argsort(-counts, kind="stable").tolist() if dataset.texts[row]]
    subjects = []
    for row in rows[: limit or None]:
        item, text = dataset.items[row], dataset.texts[row]
        subjects.append(Subject(text, {"item_id": item, "about": about(text)}, (item, about(text))))
    return DescribePlan("items", subjects, prompt_named("items"), len(dataset.items) - len(rows))


def plan_users(dataset: Dataset, limit: int = 0, until: float | None = None) -> DescribePlan:
    """Return the plan for all users with at least two events, those with the newest events first.

    Args:
        limit: describe at most so many; 0 = all.
        until: read only events before this time, seconds since 1970; None = all.
    """
    events = dataset.events
    if until is not None:
        events = events[: int(np.searchsorted(events.time, until, side="left"))]
    order = np.argsort(events.user, kind="stable")  # by user, oldest first
    users, begins = np.unique(events.user[order], return_index=True)
    ends = np.append(begins[1:], len(order))
    newest = events.time[order[ends - 1]] if len(users) else np.zeros(0)
    subjects: list[Subject] = []
    without = 0
    for at in np.argsort(-newest, kind="stable").tolist():
        rows = order[begins[at] : ends[at]]
        history = list(dict.fromkeys(events.item[rows][::-1].tolist()))[:READ_ITEMS][::-1]
        titles = [dataset.texts[item][:TITLE].strip() for item in history if dataset.texts[item]]
        if len(rows) < FEWEST_EVENTS or not titles:
            without += 1
        elif not limit or len(subjects) < limit:
            user = dataset.users[users[at]]
            items = [dataset.items[item] for item in history]
            subjects.append(Subject("; ".join(titles), {
                "user_id": user, "events": len(rows), "event_time": float(newest[at]), "history": items,
            }, (user, len(rows), hashlib.sha256("|".join(items).encode()).hexdigest()[:16])))
    return DescribePlan("users", subjects, prompt_named("users"), without)


def provider_of(settings: Settings, stages: Stages) -> Provider:
    """Return the language model that the settings name.

    Raises:
        FreshetError: they name none that can be used.
    """
    if settings.writer.provider == "server":
        return ServerProvider(settings.writer)
    if settings.writer.provider == "recorded":
        return RecordedProvider(Path(settings.writer.recording))
    return LocalProvider(settings, stages)


def describe_recorded(dataset: Dataset, home: Path, recording: Path = FILMS) -> int:
    """Write what a recording says of a catalogue's items, if it knows most of them; return of how many.

    Items that are described already keep their texts.
    """
    provider = RecordedProvider(recording)
    plan = plan_items(dataset)
    found = [subject for subject in plan.subjects if provider.has(plan.prompt.asks(subject.input))]
    if not found or 2 * len(found) < len(plan.subjects):
        return 0
    held = read_written(home / PLACE, dataset.items, dataset.texts)
    described = held.texts if held else {}
    left = [subject for subject in found if subject.line["item_id"] not in described]
    if left:
        describe(replace(plan, subjects=left), provider, home, Stages(Console(quiet=True)))
    return len(found)


def estimate(plan: DescribePlan, missing: list[Asked], provider: Provider) -> list[str]:
    """Return what a run will ask and probably cost, as text."""
    read = sum(asked.estimate for asked in missing)
    written = len(missing) * plan.prompt.usual_tokens
    cost = provider.cost(read, written)
    priced = "not known (set FRESHET_WRITER_PRICE_READ and _WRITTEN)" if cost is None else f"about {cost:.2f}"
    return [
        f"{len(plan.subjects):,} {plan.kind} to describe"
        + (f", {plan.without_text:,} more have too little to read" if plan.without_text else ""),
        f"{len(missing):,} questions (prompt {plan.prompt.id}) to {provider.about}, the others are answered or equal",
        f"about {read:,} tokens to read and {written:,} to write; cost: {priced}"]


def describe(
    plan: DescribePlan, provider: Provider, home: Path, stages: Stages, clock: Callable[[], float] = time.time,
) -> tuple[DescribeAccount, ProviderError | None]:
    """Ask what is missing, keep the answers, and write the knowledge.

    Returns:
        What became of it, and the error that ended it early, such as the spending limit. What was answered before an
        error, Ctrl-C or a kill is kept.

    Raises:
        FreshetError: another process describes for this home, or a file cannot be read.
    """
    began = time.monotonic()
    account, stopped = DescribeAccount(), None
    kept = Answers(home / KEPT)
    with _alone(home):
        known = kept.read()
        missing = plan.missing(known, provider.model)
        account.cached = len({plan.prompt.key(one.input) for one in plan.subjects}) - len(missing)
        try:
            with stages.stage(f"describe {plan.kind}", STALL_S) as step:
                step(0, len(missing))
                _ask(plan.prompt, missing, provider, kept, known, account, step)
        except ProviderError as error:
            stopped = error
        finally:
            account.described = _write(plan, known, provider.model, home, clock)
            account.seconds = time.monotonic() - began
    if account.cost is not None:
        account.cost = None if account.read and provider.cost(1, 1) is None else account.cost
    return account, stopped


def _ask(
    prompt: Prompt, missing: list[Asked], provider: Provider, kept: Answers, known: dict[tuple[str, str], Answer],
    account: DescribeAccount, step: Callable[..., None],
) -> None:
    by_key = {asked.key: asked for asked in missing}

    def checked() -> Iterator[tuple[Asked, Answer]]:
        for answer in provider.answers(missing):
            empty = not answer.refused and not prompt.said(answer.text, cut=answer.cut)
            yield by_key[answer.key], replace(answer, refused=f"not {prompt.form}") if empty else answer

    for answer in kept.keep(checked()):
        account.asked += 1
        account.answered += not answer.refused
        account.refused += bool(answer.refused) and answer.final
        account.left_open += not answer.final
        account.reason = answer.refused or account.reason
        account.read += answer.read
        account.written += answer.written
        account.cost = (account.cost or 0.0) + answer.cost
        if answer.final:
            known[answer.key, provider.model] = answer
        step(account.asked, len(missing), f"{account.read + account.written:,} tokens")


def _write(
    plan: DescribePlan, known: dict[tuple[str, str], Answer], model: str, home: Path, clock: Callable[[], float],
) -> int:
    """Write the knowledge that follows from the answers; return how many of the plan's subjects it describes.

    Lines about others stay: a home may know several catalogues, and what users wanted at other moments.
    """
    path = home / (PLACE if plan.kind == "items" else USERS)
    fields = ("item_id", "about") if plan.kind == "items" else ("user_id", "events", "history")
    lines = {_identity(line, fields): line for line in _lines(path)}
    before, described, now = dict(lines), 0, round(clock(), 3)
    for subject in plan.subjects:
        answer = known.get((plan.prompt.key(subject.input), model))
        text = plan.prompt.said(answer.text, cut=answer.cut) if answer is not None and not answer.refused else ""
        if not text:
            continue
        described += 1
        held = lines.get(subject.identity)
        line = subject.line | {"text": text, "model": model, "prompt": plan.prompt.id}
        if held is None or any(held.get(name) != value for name, value in line.items()):
            lines[subject.identity] = line | {"written_at": now}
    if lines != before:
        write_whole(path, b"".join(orjson.dumps(line) + b"\n" for line in lines.values()))
    return described


def _lines(path: Path) -> Iterable[LINE]:
    """Yield the lines of a knowledge file that are objects."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return
    for line in content.splitlines():
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError:
            continue
        if isinstance(row, dict):
            yield row


def _identity(line: LINE, fields: tuple[str, ...]) -> tuple[Any, ...]:
    """Return the identity of a line, as in `Subject`; lines by hand, without these fields, have their content."""
    values = [line.get(name) for name in fields]
    if isinstance(values[-1], list):
        values[-1] = hashlib.sha256("|".join(map(str, values[-1])).encode()).hexdigest()[:16]
    return tuple(values) if None not in values else (orjson.dumps(line),)


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    """Hold the home's knowledge folder for this process."""
    (home / KEPT.parent).mkdir(parents=True, exist_ok=True)
    lock = FileLock(home / KEPT.parent / ".lock", blocking=False)
    try:
        lock.acquire()
    except Timeout:
        raise FreshetError(f"another `freshet describe` runs for {home}; wait for it or stop it") from None
    with lock:
        yield
