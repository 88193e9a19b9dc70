"""The streams role: a Faust app around the stage. `main` runs it in the foreground."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import faust

from schemas.liveness import Progress
from schemas.settings import Settings
from schemas.settings.librdkafka import client
from schemas.watch.instruments import PROGRESS
from streams.decisions.planner import Planner
from streams.registry.client import check_registry
from streams.service.batching import BatchConsumer, BatchTransport
from streams.service.changelog import Changelog, LostError
from streams.service.cluster import Cluster
from streams.service.connection import check_brokers, credentials
from streams.service.following import FOLLOW_EVERY_S, ItemFollower, ModelFollower, load_planner
from streams.service.origin import settle
from streams.service.outbox import FaustOutbox
from streams.service.seeking import FOUND, Seeker
from streams.service.stage import SOURCES, Delivery, Stage
from streams.service.table import UserTable, store_options
from streams.service.watchdog import CRASH_S, FaustWatchdog, end_within

log = logging.getLogger("freshet.streams")

ROLE = "streams"
GROUP = "freshet-streams"
TABLE = "user-state"
# Two batches wait while one is processed: enough to keep the fetcher busy, few enough to bound memory.
BUFFERED_BATCHES = 2
METADATA_MS = 10_000
# A batch is the unit of commits. A fetch of 1 MiB holds some 9,000 events, but may hold millions of compressed bad
# records: too much work without a commit in between.
BATCH_RECORDS = 10_000
# Kafka takes batches of up to max.message.bytes, 1 MiB unless raised.
MAX_BATCH_BYTES = 900_000


class StreamsApp(faust.App):
    """A Faust app whose source topics are delivered in batches."""

    batched_topics: frozenset[str] = frozenset()
    seeker: Callable[[BatchConsumer], Seeker]  # decides where a consumer reads on
    progress: Progress
    changelog: Changelog

    def _crash(self, reason: BaseException) -> None:
        # Every crash comes by here, whichever service it begins in. Faust's shutdown may then wait for ever, for
        # streams that will never acknowledge.
        if not self.crashed:
            end_within(CRASH_S, self.progress)
        super()._crash(reason)


def build(settings: Settings, planner: Planner, cluster: Cluster | None = None) -> StreamsApp:
    """Return the app; `settings.kafka.bootstrap` says where the broker is. A connection to it may be given along."""
    cluster = cluster or Cluster(settings.kafka)
    kafka = settings.kafka
    folder = settings.home / "streams"
    folder.mkdir(parents=True, exist_ok=True)
    session_s = kafka.session_timeout_s
    app = StreamsApp(
        kafka.full(GROUP),  # also the group's name, and the beginning of the changelog's
        broker=[f"kafka://{server.strip()}" for server in kafka.bootstrap.split(",")],
        broker_credentials=credentials(kafka),
        broker_session_timeout=session_s, broker_heartbeat_interval=session_s / 5,
        broker_request_timeout=max(30.0, 1.5 * session_s), broker_commit_interval=1.0,
        broker_max_poll_records=BATCH_RECORDS,
        store="rocksdb://", datadir=str(folder), web_enabled=False,
        consumer_auto_offset_reset="none",  # `Seeker` decides, and says so
        # A topic that was deleted and created again is missed until the metadata is next asked for (default: 5 min).
        consumer_metadata_max_age_ms=METADATA_MS, producer_metadata_max_age_ms=METADATA_MS,
        topic_partitions=kafka.partitions, topic_replication_factor=kafka.replication, topic_disable_leader=True,
        table_standby_replicas=0, stream_buffer_maxsize=BUFFERED_BATCHES, stream_wait_empty=True,
        # Another changelog, or one shorter than what RocksDB has seen: `origin` deals with both.
        recovery_consistency_check=False, stream_recovery_delay=0.0,
        producer_max_batch_size=MAX_BATCH_BYTES, producer_request_timeout=30.0)
    names = [kafka.full(name) for name in SOURCES]
    app.batched_topics = frozenset(names)
    app.transport = BatchTransport(app.conf.broker_consumer, app)
    sources = app.topic(*names, key_serializer="raw", value_serializer="raw")
    store = app.Table(TABLE, key_type=bytes, value_type=bytes, partitions=kafka.partitions,
                      options=store_options(kafka.partitions),
                      extra_topic_configs={"min.insync.replicas": str(kafka.min_insync)})
    app.changelog = Changelog(client(kafka), kafka.full(f"{GROUP}-{TABLE}"), store.changelog_topic_name)
    found = Counter(dict.fromkeys(FOUND, 0))
    app.seeker = lambda consumer: Seeker(consumer, cluster, settings, found)
    stage: Stage | None = None
    progress = Progress(settings.home, ROLE, lambda: found | (stage.counters() if stage else {}))
    app.progress = progress
    PROGRESS.follow(ROLE, progress)

    def the_stage() -> Stage:
        nonlocal stage
        if stage is None:
            outbox = FaustOutbox(app.producer._ensure_producer(), progress.moved, kafka.full)
            table = UserTable(store, app.changelog, app.consumer.positions.events_life)
            stage = Stage(planner, table, outbox, settings, progress)
        return stage

    @app.agent(sources)
    async def states(stream: Any) -> None:
        # Acknowledged by hand: Faust takes an exception that leaves the loop for an acknowledgement. While a batch is
        # on its way to the broker the partition's next one is prepared; they become durable in their order.
        earlier: dict[int, asyncio.Task[None]] = {}
        async for event in stream.noack().events():
            message = event.message
            async with crash_on_error(app, message):
                topic = kafka.plain(message.topic)
                if not await the_stage().learn(topic, event.value, lambda: app.rebalancing or app.should_stop):
                    message.ack(app.consumer)  # not settled: the next owner of the partition gets it again
                    continue
                delivery = the_stage().prepare(topic, message.partition, event.value)
                if message.partition in earlier:
                    progress.doing.enter("back_pressure")
                    await earlier[message.partition]
                earlier[message.partition] = asyncio.create_task(finish(delivery, message))

    async def finish(delivery: Delivery, message: Any) -> None:
        async with crash_on_error(app, message):
            await the_stage().deliver(delivery)
            app.consumer.settle(message)

    @app.on_partitions_revoked.connect
    async def on_revoked(*args: Any, **kwargs: Any) -> None:
        # By now Faust has waited for what was on its way, and it is committed.
        app.changelog.lose()
        the_stage().forget()

    @app.on_partitions_assigned.connect
    async def on_assigned(*args: Any, **kwargs: Any) -> None:
        the_stage().forget()

    @app.task
    async def watch() -> None:
        await FaustWatchdog(settings.watchdog.stall_s, progress, kafka.plain).run(app)

    # Without this, knowledge generated after a rollback would count as stale, because it is not of the version that was
    # rolled back, and would be generated again and again.
    follow_all(app, ModelFollower(settings, planner), ItemFollower(settings, planner))

    return app


def follow_all(app: StreamsApp, *followers: ModelFollower | ItemFollower) -> None:
    """Have an app look every second at what its planner follows."""
    for follower in followers:
        app.timer(interval=FOLLOW_EVERY_S)(follower.follow)


@asynccontextmanager
async def crash_on_error(app: StreamsApp, message: Any) -> AsyncIterator[None]:
    """End the process on an error inside, such as a full disk; bad records and unreachable brokers raise none.

    What belongs to a lost partition is dropped instead. What was not settled will be delivered again.
    """
    try:
        yield
    except LostError as error:
        if app.changelog.lost_again_and_again:
            await app.crash(error)
            raise
        log.warning("dropped %s[%d] up to offset %d: %s", message.topic, message.partition, message.offset, error)
        app.consumer.drop(message)
    except Exception as error:
        log.exception("cannot process %s[%d] up to offset %d", message.topic, message.partition, message.offset)
        await app.crash(error)
        raise


def main(settings: Settings) -> None:
    """Run the role until SIGTERM or SIGINT; a stall or a crash exits non-zero.

    Raises:
        FreshetError: nothing was fitted, no broker answers, it or the schema registry refuses the client, or the topics
            do not fit the settings.

    Writes `run/streams.ready` under the home folder once partitions are assigned and their states recovered, and
    counters to `run/streams.json` (`schemas.liveness.Progress`, `COUNTED` of `stage`, `FOUND` of `seeking`).
    """
    Progress(settings.home, ROLE).clear()
    planner = load_planner(settings)
    asyncio.run(check_brokers(settings.kafka))
    asyncio.run(check_registry(settings.registry))
    cluster = Cluster(settings.kafka)
    settle(settings.home / "streams", cluster.checked().origin)
    app = build(settings, planner, cluster)
    # A batch makes thousands of short-lived objects and the states in memory are many: with Python's thresholds the
    # collector takes a tenth of the time.
    gc.set_threshold(100_000, 20, 50)
    for name in ("faust", "mode", "aiokafka", "streams.service.app", "streams.service.batching"):
        logging.getLogger(name).setLevel(logging.WARNING)
    worker = faust.Worker(app, override_logging=False, redirect_stdouts=False, quiet=True)
    worker.spinner = None  # its escape sequences would end up in the log
    clean = False
    try:
        worker.execute_from_commandline()
    except SystemExit as exit_:
        if app.crash_reason is not None:
            raise app.crash_reason from None
        if exit_.code:
            raise
        clean = True
    finally:
        app.progress.end(clean)


