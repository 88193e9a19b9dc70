"""The guard: everybody's margins together, against each model version; a harmful one is rolled back.

Its evidence is kept in `guard/evidence.msgpack` under the home, written every few seconds and at the end. After a crash
the margins since then are missing (offsets are committed batch by batch), which costs time and no validity: what is
left out does not depend on what it would have said. Counting a margin twice would, so redelivered ones are told by
their user's event count. One guard per system: two would share the margins, each needing its own evidence.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from schemas.artifacts import Artifact, Registry
from schemas.deployments import Deployments
from schemas.errors import FreshetError
from schemas.files import write_whole
from schemas.messages import Judgement, ModelUpdate
from schemas.settings import Settings
from schemas.topics import JUDGEMENTS, MODEL_UPDATES
from streams.detection.pooled import Finding, MarginBatch, Pools, culprit, dumps, fold, loads
from workers.kafka.lag import GUARD_GROUP
from workers.kafka.outbox import Output
from workers.kafka.topics import create_topics
from workers.runtime.loop import StreamWorker

log = logging.getLogger(__name__)
ROLE = "guard"
_BATCH = 512
_KEEP_EVERY_S = 5.0


class Guard:
    """Judgements in, at most a rollback out.

    Args:
        deployments: what is in use, and how to go back.
        file: where the evidence is kept.
        bound: margins are clipped to ±bound, nats.
        cells: codewords of a version over all instructions.
    """

    def __init__(
        self, deployments: Deployments, file: Path, bound: float, alpha: float, cells: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._deployments = deployments
        self._file = file
        self._bound = bound
        self._alpha = alpha
        self._cells = cells
        self._clock = clock
        self._kept_at, self._new = clock(), False
        self._counts = {"margins": 0, "rollbacks": 0, "rollbacks_failed": 0}
        self.pools = self._remembered()

    def counters(self) -> dict[str, Any]:
        """Return what is believed of each version, for the role's progress file."""
        versions = {
            version: {"margins": held.overall.n, "mean": round(held.overall.mean, 4),
                      "log_wealth": round(held.overall.log_wealth, 3), "harmful": bool(held.overall.harmful_at),
                      "harmful_codes": [code for code, pool in list(held.codes.items()) if pool.harmful_at]}
            for version, held in self.pools.versions.copy().items()}
        return self._counts | {"versions": versions}

    def __call__(self, judgements: Sequence[Judgement]) -> list[list[Output]]:
        """Return the rollback that these judgements lead to, if any."""
        evidence = [
            MarginBatch(j.user_id, j.knowledge_model_version or j.model_version, j.codes,
                     [margin.count for margin in j.margins], [margin.value for margin in j.margins])
            for j in judgements]
        self._new = True
        self._counts["margins"] += sum(len(one.margins) for one in evidence)
        out = []
        for finding in fold(self.pools, evidence, self._bound, self._alpha, self._cells):
            update = self._act(finding)
            if update is not None:
                out.append(Output(MODEL_UPDATES, update.model_version, update))
        return [out]

    def _act(self, finding: Finding) -> ModelUpdate | None:
        found = f"{finding.margins:,} margins, mean {finding.mean:+.3f} of the bound of {self._bound:.3g} nats"
        if finding.code:
            instruction, code = finding.code.split(":")
            log.warning("guard: codeword %s of instruction %s of model %s does harm (%s); the version stays in use",
                        code, instruction, finding.version, found)
            return None
        one = culprit(self.pools.versions[finding.version])
        if one:
            found += f"; without codeword {one.split(':')[1]} of instruction {one.split(':')[0]} it is not below 0"
        log.error("guard: model %s does harm (%s)", finding.version, found)
        try:
            update = self._go_back(finding.version, found)
        except (FreshetError, OSError, ValueError) as error:  # no other version, or the registry cannot be read
            self._counts["rollbacks_failed"] += 1
            log.error("guard: model %s cannot be rolled back: %s. It stays in use; users' own tests go on taking "
                      "trust away from it. Fit anew with `freshet fit`, or choose with `freshet models --select`",
                      finding.version, error)
            return None
        self._counts["rollbacks"] += 1
        log.error("guard: rolled back from model %s to %s", finding.version, update.model_version)
        return update

    def _go_back(self, version: str, why: str) -> ModelUpdate:
        """Return what all roles are to load.

        A harmful version that is not in use by the log is one whose rollback was not heard (a crash between the log
        and the topic), or one that was published past the log: what is in use is then said (again).
        """
        now, current = self._clock(), self._deployments.in_use()
        if current.model_version != version:
            return current.model_copy(update={
                "published_at": now, "withdrawn": sorted({version, *current.withdrawn})})
        update = self._one_back(version, why)
        while self._is_harmful(update.model_version):
            log.warning("guard: model %s before it did harm as well", update.model_version)
            try:
                update = self._one_back(update.model_version, why)
            except FreshetError as error:
                log.error("guard: %s; model %s is used again all the same", error, update.model_version)
                break
        return update

    def _one_back(self, version: str, why: str) -> ModelUpdate:
        registry = self._deployments.registry
        versions = registry.versions()
        if version in versions[1:]:  # no adapter: another fitted version will be current, so it must be sound
            registry.open(versions[versions.index(version) - 1])
        return self._deployments.roll_back(self._clock(), reason=f"guard: harm over {why}")

    def _is_harmful(self, version: str) -> bool:
        held = self.pools.versions.get(version)
        return held is not None and bool(held.overall.harmful_at)

    def keep(self, *, force: bool = False) -> None:
        """Write the evidence if it is new and a few seconds have passed. Call it between batches: all is committed."""
        now = self._clock()
        if not self._new or (not force and now - self._kept_at < _KEEP_EVERY_S):
            return
        self._kept_at, self._new = now, False
        write_whole(self._file, dumps(self.pools))

    def _remembered(self) -> Pools:
        try:
            return loads(self._file.read_bytes())
        except FileNotFoundError:
            return Pools()
        except FreshetError as error:
            log.warning("guard: %s: %s; starting without evidence", self._file, error)
            return Pools()


def cells(artifact: Artifact) -> int:
    """Return the number of codewords of a model over all instructions."""
    fitted = artifact.card.settings.get("fit", {})
    return max(1, int(fitted.get("instructions", 1)) * int(fitted.get("codes", 1)))


def main(settings: Settings) -> None:
    """Run the guard until SIGTERM.

    Raises:
        FreshetError: there is no model, or the broker cannot be used.
    """
    artifact = Registry(settings.home).open()
    guard = Guard(
        Deployments(settings.home), settings.home / "guard" / "evidence.msgpack", artifact.calibration().margin_bound,
        settings.refresh.pooled_alpha, cells(artifact))
    create_topics(settings.kafka)
    worker = StreamWorker(
        settings, ROLE, GUARD_GROUP, JUDGEMENTS, guard, batch=_BATCH, between=guard.keep, counters=guard.counters)
    log.info("guard: watching model %s, level %g", artifact.model_version, settings.refresh.pooled_alpha)
    try:
        worker.run()
    finally:
        guard.keep(force=True)
