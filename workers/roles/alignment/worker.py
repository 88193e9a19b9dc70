"""The alignment worker: trains a LoRA adapter on contradicted samples and publishes it if held-out users benefit."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from models.aligning.align import AlignmentResult, Groups, align
from models.aligning.cohort import FrozenModels
from models.compute.devices import gpu_memory
from schemas.artifacts import Registry
from schemas.codec import decode
from schemas.deployments import Attempt, Deployments, base_of
from schemas.errors import PoisonError
from schemas.messages import AlignmentSample, ModelUpdate, RankingRequest
from schemas.settings import Settings
from schemas.topics import ALIGNMENT_SAMPLES, MODEL_UPDATES, RANKING_REQUESTS
from schemas.watch.instruments import show
from workers.kafka.outbox import Output, Rejected
from workers.kafka.reader import read_all
from workers.kafka.topics import create_topics, partitions
from workers.roles.alignment.training_users import MIN_HISTORY, TrainingItems, choose_groups
from workers.roles.knowledge.generator import LlmGenerator
from workers.runtime.gather_loop import LARGEST, GatheringWorker, StoppedError
from workers.runtime.loop import split_tombstones
from workers.runtime.model_updates import ModelUpdates

log = logging.getLogger(__name__)
ROLE = "alignment"
GROUP = "freshet-alignment"
_READ_BACK = 8000  # newest ranking requests searched for untouched users: about 20 MB


class Aligner(LlmGenerator):
    """Turns samples into an attempt, and into a model update if the attempt is published.

    Attributes:
        beat: called after every training step. An exception that it raises ends the attempt without a record.
        requests: returns recent ranking requests of all users, to find untouched ones.
        clock: wall clock, seconds.
    """

    def __init__(self, *models: Any) -> None:
        """Take the arguments of `LlmGenerator`.

        Raises:
            FreshetError: the model has no soft instructions that an adapter could be trained for.
        """
        super().__init__(*models)
        _ = self._knowledge
        self.beat: Callable[[], None] = lambda: None
        self.requests: Callable[[], Sequence[RankingRequest]] = list
        self.clock: Callable[[], float] = time.time
        self._counts: dict[str, Any] = {
            "attempts": 0, "published": 0, "rejected": 0, "samples": 0, "step": 0, "steps": 0, "last": ""}

    def refuse(self, sample: AlignmentSample) -> str | None:
        """Return why a sample cannot be used, or None if it can.

        Samples of every adapter of the current fitted model are used. Training generates their knowledge again with the
        adapter in use, and a sample that no longer contradicts it has no effect.
        """
        if base_of(sample.model_version) not in ("", self._base):
            return "other_version"
        catalogue = self.catalogue()
        if sample.item_id not in self._rows or len(catalogue.known(sample.history)) < MIN_HISTORY - 1:
            return "unknown_items"
        return None

    def catalogue(self) -> TrainingItems:
        """Return the items that the model in use knows."""
        return TrainingItems(self._rows, self._ranking.max_len)

    def counters(self) -> dict[str, Any]:
        """Return the counters for the role's progress file."""
        return super().counters() | self._counts | {"model_version": self.model_version}

    def __call__(self, samples: Sequence[AlignmentSample]) -> Iterator[list[Output | Rejected]]:
        """Yield the model update if the attempt is published, otherwise nothing.

        The loop passes fewer samples than configured only after a failure of all of them together. Those are not tried
        again.
        """
        if len(samples) < self._settings.alignment.samples:
            return
        update = self.attempt(samples)
        yield [] if update is None else [Output(MODEL_UPDATES, update.model_version, update)]

    def attempt(self, samples: Sequence[AlignmentSample]) -> ModelUpdate | None:
        """Train on samples, judge the adapter and record the attempt; return the update to send, if it is published."""
        deployments = Deployments(self._settings.home)
        began = self.clock()
        users = "\x1f".join(sorted(sample.user_id for sample in samples)).encode("utf-8", "surrogatepass")
        digest = hashlib.blake2b(users, digest_size=2).hexdigest()
        attempt = Attempt(
            name=f"{datetime.fromtimestamp(began, UTC):%Y%m%d-%H%M%S}-{digest}",
            base=self._base, started_from=self.model_version if self._llm.adapter else "", created_at=began,
            published=False, reason="")
        self._counts |= {"attempts": self._counts["attempts"] + 1, "samples": len(samples)}
        chosen = choose_groups(samples, self.requests(), self.catalogue(), self._settings.alignment.held_out)
        with deployments.scratch() as folder:
            try:
                made = self._align(chosen, folder)
            except StoppedError:
                raise
            except Exception as error:  # training would raise the same error on these samples again
                log.exception("attempt %s failed", attempt.name)
                outcome: dict[str, Any] = {"reason": f"training failed: {(str(error).splitlines() or [''])[0][:300]}"}
            else:
                outcome = {
                    "published": made.verdict.publish, "reason": made.verdict.reason, "figures": made.figures()}
            attempt = attempt.model_copy(update=outcome)
            deployments.record(attempt, folder)
        self._counts |= {"published": self._counts["published"] + attempt.published,
                         "rejected": self._counts["rejected"] + (not attempt.published), "last": attempt.reason}
        log.info("attempt %s %s: %s; %s", attempt.name, "published" if attempt.published else "rejected",
                 attempt.reason, {key: round(value, 4) for key, value in attempt.figures.items()})
        if not attempt.published:
            return None
        # All roles follow what this writes; the message only tells them sooner. If this process crashes before it is
        # sent, the attempt is repeated.
        update = deployments.publish_adapter(attempt, self.clock())
        if update is None:
            log.warning("model %s is no longer in use; adapter %s will be when it is again", attempt.base, attempt.name)
            return None
        self.apply(update)
        return update

    def _align(self, chosen: Groups, folder: Path) -> AlignmentResult:
        settings = self._settings
        parts = FrozenModels(
            self._ranking, self._knowledge, self._cache, self._llm, settings.llm.history, settings.llm.batch,
            settings.ranking.current_evidence)
        clip = Registry(settings.home).open(self._base).calibration().margin_bound
        log.info("training on %d contradicted users and %d untouched ones", len(chosen.contradicted),
                 len(chosen.untouched))
        return align(parts, chosen, settings.alignment, folder, clip, self._moved)

    def _moved(self, done: int, total: int, metrics: dict[str, float]) -> None:
        self._counts |= {"step": done, "steps": total}
        if metrics and done % 10 == 0:
            log.info("step %d of %d: %s", done, total, {name: round(value, 4) for name, value in metrics.items()})
        self.beat()


def recent_requests(settings: Settings) -> list[RankingRequest]:
    """Return the newest ranking requests but those of users erased since; unreadable and oversized records are skipped.
    """
    number = partitions(settings.kafka, [RANKING_REQUESTS.name])[RANKING_REQUESTS.name]
    out = []
    _, records = split_tombstones(read_all(
        settings.kafka, [RANKING_REQUESTS.name], last=max(1, _READ_BACK // number)))
    for record in records:
        value = record.value()
        if value is not None and len(value) <= LARGEST:
            try:
                out.append(decode(RankingRequest, value))
            except PoisonError:
                continue
    return out


def main(settings: Settings) -> None:
    """Run the worker until SIGTERM, at low priority, because serving comes first.

    Raises:
        FreshetError: there is no model, the language model cannot be loaded, or the broker cannot be used.
    """
    os.nice(10)
    artifact = Registry(settings.home).open()
    aligner = Aligner.load(settings, artifact)
    create_topics(settings.kafka)
    updates = ModelUpdates(settings, ROLE, artifact.model_version, aligner.apply)
    updates.catch_up()
    show(gpu_memory)
    worker: GatheringWorker[AlignmentSample] = GatheringWorker(
        settings, ROLE, GROUP, ALIGNMENT_SAMPLES, aligner, enough=settings.alignment.samples, refuse=aligner.refuse,
        between=updates.poll, counters=lambda: aligner.counters() | updates.counters())
    aligner.beat = worker.beat
    aligner.requests = lambda: recent_requests(settings)
    try:
        worker.run()
    finally:
        updates.close()
