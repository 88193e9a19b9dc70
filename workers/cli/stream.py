"""`freshet produce`, `catalogue`, `tail` and `topics`: send events and items, and read topics."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import orjson
import typer
from rich.console import Console
from rich.table import Table

from schemas.errors import FreshetError
from schemas.settings import Settings, load
from schemas.topics import BEHAVIOUR_EVENTS, CATALOGUE, TOPICS
from workers.home.titles import Titles

if TYPE_CHECKING:
    from models.data.account import Account


def produce(
    file: Annotated[str, typer.Argument(help="CSV (also tab, ; or ::), JSON lines, a JSON array or Parquet; also "
                                             "compressed by gzip or zstd. - reads standard input.")],
    backfill: Annotated[bool, typer.Option(
        help="Send the events as history: they update the users' states, but cause no recommendations.")] = False,
    speed: Annotated[float, typer.Option(
        help="Speed-up: seconds of event time per second. 0 = as fast as possible.")] = 0.0,
    catalogue: Annotated[bool, typer.Option(
        "--catalogue", help="The file has items of the catalogue: item_id, title, attributes, text, available, labels, "
                            "price. With removed: true an item leaves it.")] = False,
) -> None:
    """Send behaviour events, or with --catalogue items, from a file to the running stack.

    Every event needs a user, an item and a time. Columns are found by their names (`user_id`, `userId`, `visitorid`,
    …); `FRESHET_EVENTS_FIELDS=user_id=NAME` maps others. docs/events.md says what is read. Lines that are not valid
    events are skipped and reported, and the exit code is 1.

    Examples:

    `freshet produce events.csv --backfill`

    `freshet produce items.jsonl --catalogue`

    `echo '{"user_id": "7", "item_id": "50", "event_time": 893286638}' | freshet produce -`
    """
    from models.data.account import Account
    from workers.data.produce import EventProducer, Pacer, read_file
    from workers.home.stack_info import connected

    settings = connected(load())
    account = Account("standard input" if file == "-" else Path(file).name)
    if catalogue:
        _produce_items(file, account, settings)
        return
    producer = EventProducer(settings.kafka, backfill=backfill, stall_s=settings.watchdog.stall_s)
    pacer = Pacer(speed, time.monotonic())
    try:
        for event in read_file(file, account, settings.events, sys.stdin.buffer):
            while (wait := pacer.due(event.event_time) - time.monotonic()) > 0:
                producer.poll(min(wait, 0.5))
            producer.send(event)
    finally:
        producer.flush()
    _report(producer.delivered, account, "events", settings.kafka.full(BEHAVIOUR_EVENTS.name))


def _produce_items(file: str, account: Account, settings: Settings) -> None:
    from schemas.codec import encode
    from workers.data.catalogue import read_items
    from workers.data.produce import EventProducer

    producer = EventProducer(settings.kafka, stall_s=settings.watchdog.stall_s)
    try:
        for name, item in read_items(file, account, settings.events, sys.stdin.buffer):
            producer.record(CATALOGUE, name, None if item is None else encode(item))
    finally:
        producer.flush()
    _report(producer.delivered, account, "items", settings.kafka.full(CATALOGUE.name))


def _report(delivered: int, account: Account, what: str, topic: str) -> None:
    typer.echo(f"produced {delivered:,} {what} to {topic}")
    for line in account.lines()[1:]:
        typer.echo(line, err=True)
    if account.left_out:
        raise FreshetError(f"{account.left_out:,} of {account.read:,} rows are not valid {what} and were not sent")


def catalogue(
    file: Annotated[Path, typer.Argument(help="File of JSON lines, such as items.jsonl beside events.csv. Its items "
                                              "stay, as far as the topic says nothing else of them.")],
) -> None:
    """Write the items of the topic `catalogue` into a file, for the next `freshet fit`.

    Examples:

    `freshet catalogue my-shop/items.jsonl`

    `freshet fit --data my-shop`
    """
    from workers.catalogue.export import export
    from workers.home.stack_info import connected

    items, came, bad = export(connected(load()).kafka, file)
    typer.echo(f"{file}: {items:,} items, {came:,} of them as the topic has them")
    if bad:
        typer.echo(f"{bad:,} records of the topic cannot be used; `freshet dead-letters` lists them")


def tail(
    topic: Annotated[str, typer.Argument(help="A topic; `freshet topics` lists them.")],
    from_beginning: Annotated[bool, typer.Option(help="Start with the oldest record instead of new ones.")] = False,
    n: Annotated[int, typer.Option("-n", help="Stop after this many records. 0 = never.")] = 0,
    titles: Annotated[bool, typer.Option(
        "--titles", help="Add titles beside ids of items, as the model in use or the catalogue has them.")] = False,
) -> None:
    """Print new records of a topic as JSON lines, until Ctrl-C.

    Examples:

    `freshet tail recommendations --titles`

    `freshet tail dead-letters --from-beginning -n 10`
    """
    from workers.catalogue.titles import known_titles
    from workers.home.stack_info import connected
    from workers.kafka.reader import TopicReader

    settings = connected(load())
    topic = settings.kafka.plain(topic)
    if topic not in TOPICS:
        raise FreshetError(f"unknown topic {topic!r}; topics are {', '.join(TOPICS)}")
    known = known_titles(settings) if titles else None
    shown = 0
    with TopicReader(settings.kafka, [topic], from_beginning=from_beginning) as reader:
        while not n or shown < n:
            for message in reader.poll(0.5):
                sys.stdout.write(_line(message.value(), known) + "\n")
                shown += 1
                if n and shown >= n:
                    break
            sys.stdout.flush()


def _line(value: bytes | None, titles: Titles | None = None) -> str:
    if value is None:  # a tombstone
        return "null"
    try:
        record = orjson.loads(value)
        return orjson.dumps(record if titles is None else titles.beside(record)).decode()
    except orjson.JSONDecodeError:
        return repr(value)


def topics(
    create: Annotated[bool, typer.Option(
        "--create", help="Create missing topics first, and add the partitions that a topic lacks because a producer's "
                         "first record made it.")] = False,
) -> None:
    """List the topics and, if a broker is running, the number of records in each.

    Example: `FRESHET_KAFKA_BOOTSTRAP=kafka:9092 freshet topics --create`
    """
    from workers.home.stack_info import connected
    from workers.kafka.configuration import check_reachable
    from workers.kafka.reader import watermarks
    from workers.kafka.topics import create_topics

    settings = load()
    live: dict[str, list[tuple[int, int]]] = {}
    try:
        settings = connected(settings)
    except FreshetError:
        if create:
            raise
    if settings.kafka.bootstrap:
        check_reachable(settings.kafka)
        if create:
            create_topics(settings.kafka, grow=True)
        live = watermarks(settings.kafka, list(TOPICS))
    console = Console()
    wide = console.width >= 120
    title = f"topics at {settings.kafka.bootstrap}" if live else "topics (no broker running)"
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    widest = max(len(settings.kafka.full(name)) for name in TOPICS)
    for column in ("topic", "key", "partitions", "cleanup", "kept", "records", *(("flow",) if wide else ())):
        table.add_column(column, justify="right" if column in ("partitions", "records") else "left",
                         min_width=widest if column == "topic" else None)
    for topic in TOPICS.values():
        marks = live.get(topic.name)
        kept = "forever" if topic.retention_ms < 0 else f"{topic.retention_ms // 86_400_000} d"
        records = "" if not live else "missing" if marks is None else f"{sum(high - low for low, high in marks):,}"
        partitions = topic.partitions or settings.kafka.partitions if marks is None else len(marks)
        table.add_row(settings.kafka.full(topic.name), topic.key, str(partitions), topic.cleanup, kept, records,
                      *((f"{topic.writer} → {topic.readers}",) if wide else ()))
    console.print(table)
