"""The knowledge worker: answers requests by generating vectors from histories, storing and announcing them."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from models.compute.devices import gpu_memory
from models.knowledge.generation import Generation
from schemas.artifacts import Registry
from schemas.messages import LARGEST, KnowledgeRequest, KnowledgeUpdate, ModelUpdate
from schemas.settings import Settings
from schemas.topics import KNOWLEDGE_REQUESTS, KNOWLEDGE_UPDATES
from schemas.watch.instruments import histogram, show
from workers.kafka.lag import KNOWLEDGE_GROUP
from workers.kafka.outbox import Output, Rejected, tombstone
from workers.kafka.topics import create_topics
from workers.roles.knowledge.generator import LlmGenerator
from workers.roles.knowledge.items import ItemFiller
from workers.roles.knowledge.later import LaterItemsThread
from workers.runtime.loop import StreamWorker
from workers.runtime.model_updates import ModelUpdates
from workers.store.point import DamagedPoint, KnowledgePoint, KnowledgeStore
from workers.store.qdrant import QdrantStore

log = logging.getLogger(__name__)
ROLE = "knowledge"
# Batch of requests, in forward passes. 8 is enough to see a user's next request before the first is generated, and few
# enough that a crash repeats little work.
_PASSES = 8
_SECONDS = histogram("freshet_stage_seconds")
_LOOK_UP, _GENERATE, _STORE = (_SECONDS.labels(ROLE, stage) for stage in ("look_up", "generate", "store"))
_FRESHNESS, _USERS = histogram("freshet_knowledge_freshness_seconds"), histogram("freshet_llm_batch_users")


class Generator(Protocol):
    """Generates knowledge from histories. It hides `models`, so that the batch logic can be used with any generator."""

    model_version: str
    has_knowledge: bool
    """False = the model in use serves behaviour alone; `generate` must not be called."""

    def generate(self, histories: Sequence[Sequence[str]], users: Sequence[str] = ()) -> Generation:
        """Return the knowledge of users from their item ids, oldest first. Unknown items are skipped.

        Args:
            users: the users' ids; () = not known.
        """

def history_hash(history: Sequence[str]) -> str:
    """Return a short hash of a history; equal histories have equal hashes."""
    return hashlib.blake2b("\x1f".join(history).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def newest_requests(requests: Sequence[KnowledgeRequest]) -> list[KnowledgeRequest]:
    """Return each user's request with the highest version (the last one of equals), highest priority first."""
    newest: dict[str, KnowledgeRequest] = {}
    for request in requests:
        held = newest.get(request.user_id)
        if held is None or request.version >= held.version:
            newest[request.user_id] = request
    return sorted(newest.values(), key=lambda request: -request.priority)


class KnowledgeProcessor:
    """Turns requests into updates, `batch` users per forward pass. Each pass's updates are sent before the next pass.

    Repeating a request is harmless: knowledge that is in the store already is only announced again.

    Args:
        batch: users per forward pass.
        clock: wall clock, seconds.
        tokens: returns how many tokens the language model has read so far.
    """

    def __init__(
        self, generator: Generator, store: KnowledgeStore, batch: int, clock: Callable[[], float] = time.time,
        tokens: Callable[[], int] = lambda: 0,
    ) -> None:
        self.generator = generator
        self._tokens = tokens
        self._store = store
        self._batch = batch
        self._clock = clock
        self.counters: dict[str, Any] = {
            "requests": 0, "superseded": 0, "already_held": 0, "generated": 0, "forward_passes": 0, "rejected": 0,
            "overtaken": 0, "damaged": 0, "erased": 0, "not_needed": 0, "generate_s": 0.0, "refreshes": {}}

    def __call__(self, requests: Sequence[KnowledgeRequest]) -> Iterator[list[Output | Rejected]]:
        """Yield the outputs of each pass.

        Raises:
            StoreUnavailableError: nothing of the current pass was announced; call again with the same requests.
        """
        if not self.generator.has_knowledge:  # requested before that model came into use: nothing to do for them
            self.counters["requests"] += len(requests)
            self.counters["not_needed"] += len(requests)
            self._count(requests, "not_needed")
            return
        newest = newest_requests(requests)
        with _LOOK_UP.time():
            found = self._store.look([request.user_id for request in newest])
        held = found.points
        for damaged in found.damaged.values():
            log.error("a user's knowledge is damaged (%s); generating it again", damaged.why)
        done = [r for r in newest if r.user_id in held and held[r.user_id].version >= r.version]
        yield [_announce(held[r.user_id], r, written=held[r.user_id].version == r.version) for r in done]
        skip = {request.user_id for request in done}
        wanted = [request for request in newest if request.user_id not in skip]
        for start in range(0, len(wanted), self._batch):
            yield self._pass(wanted[start:start + self._batch], found.damaged)
        self.counters["requests"] += len(requests)
        self.counters["superseded"] += len(requests) - len(newest)
        self.counters["already_held"] += len(done)
        kept = {id(request) for request in newest}
        self._count([request for request in requests if id(request) not in kept], "superseded")
        self._count(done, "already_held")

    def forget(self, users: Sequence[str]) -> list[Output]:
        """Delete users' knowledge from the store, and end what was announced of it.

        Raises:
            StoreUnavailableError: nothing was announced; call again.
        """
        held = self._store.erase(users)
        self.counters["erased"] += len(held)
        return [tombstone(KNOWLEDGE_UPDATES, user, user in held) for user in users]

    def _count(self, requests: Sequence[KnowledgeRequest], outcome: str) -> None:
        """Note what became of requests, by their reasons. The whole table is replaced: other threads read it."""
        table = {reason: dict(outcomes) for reason, outcomes in self.counters["refreshes"].items()}
        for request in requests:
            outcomes = table.setdefault(request.reason, {})
            outcomes[outcome] = outcomes.get(outcome, 0) + 1
        self.counters["refreshes"] = table

    def _pass(
        self, requests: Sequence[KnowledgeRequest], damaged: Mapping[str, DamagedPoint],
    ) -> list[Output | Rejected]:
        started, before = time.perf_counter(), self._tokens()
        made = self.generator.generate(
            [request.history for request in requests], [request.user_id for request in requests])
        took = time.perf_counter() - started
        spent = (took / len(requests), (self._tokens() - before) / len(requests))
        self.counters["generate_s"] += took
        _GENERATE.observe(took)
        _USERS.observe(len(requests))
        self.counters["forward_passes"] += 1
        self.counters["generated"] += len(requests)
        # Microseconds: the store returns 16 digits unchanged, but its JSON reader may change a 17th. A redelivered
        # request would then be announced with another time.
        now = round(self._clock(), 6)
        sound = [(request, row) for row, request in enumerate(requests) if made.finite[row]]
        out: list[Output | Rejected] = [
            Rejected(r, "the model's knowledge is not finite; the old knowledge stays")
            for r, finite in zip(requests, made.finite, strict=True) if not finite]
        self.counters["rejected"] += len(out)
        points = [self._point(request, made, row, now, damaged.get(request.user_id)) for request, row in sound]
        replaced = [damaged[point.user_id] for point in points if point.user_id in damaged]
        # Deleted first: a write would not replace one of the same version, or of an unreadable one. After a crash in
        # between the user has none, and the request is delivered again.
        self._store.discard(replaced)
        self.counters["damaged"] += len(replaced)
        with _STORE.time():
            written = self._store.upsert(points)
        readable = self._clock()
        overtaken = [point.user_id for point, here in zip(points, written, strict=True) if not here]
        self.counters["overtaken"] += len(overtaken)
        # A newer version was written in between. Readers see that one, so announce that one.
        newer = self._store.read(overtaken) if overtaken else {}
        for (request, _), point, here in zip(sound, points, written, strict=True):
            shown = point if here else newer.get(point.user_id, point)
            out.append(_announce(shown, request, written=here, spent=spent))
            if here:
                _FRESHNESS.labels(request.reason).observe(max(0.0, readable - request.caused_at))
        self._count([request for (request, _), here in zip(sound, written, strict=True) if here], "written")
        self._count([request for (request, _), here in zip(sound, written, strict=True) if not here], "overtaken")
        self._count([request for request, finite in zip(requests, made.finite, strict=True) if not finite], "rejected")
        return out

    def _point(
        self, request: KnowledgeRequest, made: Generation, row: int, now: float, damaged: DamagedPoint | None,
    ) -> KnowledgePoint:
        vectors, there = made.vectors[row], made.items[row] >= 0
        # A user's versions never fall, also where the damaged point's was ahead of the request.
        held = damaged.version if damaged is not None and damaged.version is not None else 0
        version = max(request.version, held if held <= LARGEST else 0)
        return KnowledgePoint(
            user_id=request.user_id, version=version, model_version=self.generator.model_version,
            vectors=vectors.astype(np.float16), pooled=vectors.mean(0).astype(np.float32),
            history_hash=history_hash(request.history), reason=request.reason, generated_at=now,
            event_time=request.event_time, count=request.count, codes=tuple(made.codes[row].tolist()),
            items=tuple(made.items[row][there].tolist()), weights=tuple(made.weights[row][there].tolist()))


def _announce(
    point: KnowledgePoint, request: KnowledgeRequest, *, written: bool,
    spent: tuple[float | None, float | None] = (None, None),
) -> Output:
    return Output(KNOWLEDGE_UPDATES, point.user_id, KnowledgeUpdate(
        user_id=point.user_id, version=point.version, model_version=point.model_version, reason=request.reason,
        count=point.count, event_time=point.event_time, history_hash=point.history_hash, caused_at=request.caused_at,
        generated_at=point.generated_at, written=written, spent_s=spent[0], spent_tokens=spent[1]))


def main(settings: Settings) -> None:
    """Run the worker until SIGTERM.

    Raises:
        FreshetError: there is no model, the language model cannot be loaded, or broker or store cannot be used.
    """
    artifact = Registry(settings.home).open()
    generator = LlmGenerator.load(settings, artifact)
    store = QdrantStore.of(settings, generator.dim)
    processor = KnowledgeProcessor(
        generator, store, settings.llm.batch, tokens=lambda: generator.counters()["llm_tokens"])
    create_topics(settings.kafka)
    items = ItemFiller(settings, artifact)
    later = LaterItemsThread(settings, artifact)

    def apply(update: ModelUpdate) -> None:
        generator.apply(update)
        items.take(generator.model_version)
        later.take(generator.model_version)

    updates = ModelUpdates(settings, ROLE, artifact.model_version, apply)
    updates.catch_up()
    show(gpu_memory)
    worker = StreamWorker(
        settings, ROLE, KNOWLEDGE_GROUP, KNOWLEDGE_REQUESTS, processor, batch=_PASSES * settings.llm.batch,
        between=updates.poll,
        counters=lambda: processor.counters | generator.counters() | items.counters | later.counters | {
            "model_version": generator.model_version,
            "cost": round(processor.counters["generate_s"] / 3600 * settings.metrics.cost_per_hour, 6),
        } | updates.counters(), forget=processor.forget)
    try:
        worker.run()
    finally:
        later.close()
        items.close()
        updates.close()
        store.close()
