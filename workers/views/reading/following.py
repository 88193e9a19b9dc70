"""Two threads that keep the views current: one reads the topics, one asks now and then how things are."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack

from confluent_kafka import TIMESTAMP_NOT_AVAILABLE, Message

from schemas.liveness import Progress
from schemas.settings import Settings
from workers.kafka.live import LiveTopics
from workers.views.reading.catalogue import ShownItems
from workers.views.reading.folding import NEWEST, READ, LiveRecord, ViewsFold
from workers.views.reading.local import LocalViews
from workers.views.reading.recent import Recent
from workers.views.reading.status import Status
from workers.views.reading.stored import Stored
from workers.views.reading.tables import Tables

log = logging.getLogger(__name__)
_SAMPLE_S = 5.0
# While the topics are read for the first time nobody is served, so batches are large. Afterwards a batch must not hold
# the interpreter long enough for a request to notice: 100 records are folded in some 3 ms.
_CATCHING_UP, _SERVING = 2000, 100


class ViewsThreads:
    """The views of this process, and the threads behind them. A thread that fails ends both; `failure` has the error.

    Args:
        progress: gets what is read; its files are the role's.
    """

    def __init__(self, settings: Settings, progress: Progress) -> None:
        self._progress = progress
        self._plain = settings.kafka.plain
        self._stopping = threading.Event()
        self.failure: Exception | None = None
        self._open = ExitStack()
        self._tables = Tables(settings.home / "console")
        self._open.callback(self._tables.close)
        self._topics = LiveTopics(settings.kafka, READ, NEWEST)
        self._open.callback(self._topics.close)
        self._recent = Recent()
        self._fold = ViewsFold(self._tables, self._recent)
        self._items = ShownItems(settings.home, self._tables)
        self._status = Status(settings)
        self._open.callback(self._status.close)
        self._stored = Stored(settings, self._items)
        self._open.callback(self._stored.close)
        self._prepared = False
        self._read = 0
        self._behind = 0
        self.beat = time.monotonic()
        """When the reader last came round, monotonic seconds."""
        self.views = LocalViews(
            settings, self._tables, self._recent, self._fold, self._items, self._status, self._stored,
            caught_up=lambda: self._prepared and self._topics.caught_up, share_read=lambda: self._topics.share_read,
            behind=lambda: self._behind, read=lambda: self._read)
        self._threads = [threading.Thread(target=self._run, args=(step,), name=name, daemon=True)
                         for name, step in (("views", self._follow), ("views-status", self._look))]

    @property
    def unreadable(self) -> dict[str, int]:
        """Records per topic that are not what their topic says."""
        return dict(self._fold.unreadable)

    def start(self) -> None:
        """Start the threads."""
        self.beat = time.monotonic()
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop the threads and remove the tables."""
        self._stopping.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(10.0)
        self._open.close()

    def _run(self, step: Callable[[], None]) -> None:
        try:
            while not self._stopping.is_set():
                step()
        except Exception as error:
            log.exception("console: its views cannot be kept current")
            self.failure = error
            self._stopping.set()

    def _follow(self) -> None:
        self.beat = time.monotonic()
        self._progress.doing.enter("idle")
        messages = self._topics.poll(0.1, _SERVING if self._topics.caught_up else _CATCHING_UP)
        started = time.monotonic()
        if messages:
            self._progress.doing.enter("processing")
            self._progress.in_hand(len(messages))
            changes = self._fold.catalogue_changes
            self._fold.fold([self._record(message) for message in messages])
            self._read += len(messages)
            if self._fold.catalogue_changes != changes:
                self._items.forget_titles()
            self._progress.done(len(messages), time.monotonic() - started)
        self._progress.write(self._behind)

    def _look(self) -> None:
        if not self._prepared:
            self._items.follow()
            self._stored.prepare()
            self._prepared = True
        self._status.sample(time.monotonic())
        self._recent.events(time.time(), self._status.events)
        self._items.follow()
        self._behind = self._topics.behind()
        self._progress.broker_away = bool(self._status.broker_problem)
        self._stopping.wait(_SAMPLE_S)

    def _record(self, message: Message) -> LiveRecord:
        kind, at = message.timestamp()
        return LiveRecord(self._plain(message.topic() or ""), message.offset() or 0,
                          time.time() if kind == TIMESTAMP_NOT_AVAILABLE else at / 1000, message.key(),
                          message.value())
