"""The guard: tests the margins of all users per model version, and rolls a harmful version back.

The evidence is stored in `guard/evidence.msgpack` under the home, every few seconds and at the end. After a crash, the
margins since the last write are missing, because offsets are committed batch by batch. That delays a decision but keeps
the test valid: which margins are missing does not depend on their values. Counting a margin twice would not be valid,
so redelivered margins are recognised by the user's event count. Run one guard per system: two guards would share the
margins, and each needs all of them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from schemas.artifacts import Artifact, Registry
from schemas.deployments import Deployments, base_of
from schemas.errors import FreshetError, NewerFormatError
from schemas.files import write_whole
from schemas.messages import Judgement, ModelUpdate
from schemas.settings import Settings
from schemas.topics import JUDGEMENTS, MODEL_UPDATES
from streams.detection.pooled import Finding, MarginBatch, Pools, culprit, dumps, fold, loads
from workers.kafka.lag import GUARD_GROUP
from workers.kafka.outbox import Output
from workers.kafka.topics import create_topics
from workers.runtime.loop import StreamWorker
from workers.runtime.model_updates import ModelUpdates

log = logging.getLogger(__name__)
ROLE = "guard"
_BATCH = 512
_KEEP_EVERY_S = 5.0


class Guard:
    """Takes judgements and returns a rollback if a version does harm.

    Args:
        deployments: the versions in use.
        file: where the evidence is stored.
        bound: margins are clipped to ±bound, nats.
        alpha: error probability of the test.
        cells: number of codewords of a version over all instructions.
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
        self._kept_at, self._new = time.monotonic(), False
        self._counts = {"margins": 0, "rollbacks": 0, "rollbacks_failed": 0}
        self.pools = self._load_evidence()

    def counters(self) -> dict[str, Any]:
        """Return the evidence per version, for the role's progress file."""
        versions = {
            version: {"margins": held.overall.n, "mean": round(held.overall.mean, 4),
                      "log_wealth": round(held.overall.log_wealth, 3), "harmful": bool(held.overall.harmful_at),
                      "harmful_codes": [code for code, pool in list(held.codes.items()) if pool.harmful_at]}
            for version, held in self.pools.versions.copy().items()}
        return self._counts | {"versions": versions}

    def __call__(self, judgements: Sequence[Judgement]) -> list[list[Output]]:
        """Return one part of outputs: the rollback that these judgements cause, if any."""
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

    def forget(self, users: Sequence[str]) -> list[Output]:
        """Forget which margins of users were counted, also on disk. Their sums say nothing of who they were."""
        for user in users:
            self.pools.judged.pop(user, None)
        self._new = True
        self.keep(force=True)
        return []

    def _act(self, finding: Finding) -> ModelUpdate | None:
        found = f"{finding.margins:,} margins, mean {finding.mean:+.3f} of the bound of {self._bound:.3g} nats"
        if finding.code:
            instruction, code = finding.code.split(":")
            log.warning("guard: codeword %s of instruction %s of model %s does harm (%s); the version stays in use",
                        code, instruction, finding.version, found)
            return None
        one = culprit(self.pools.versions[finding.version])
        if one:
            instruction, code = one.split(":")
            found += f"; without codeword {code} of instruction {instruction} the mean is not below 0"
        log.error("guard: model %s does harm (%s)", finding.version, found)
        try:
            update = self._roll_back(finding.version, found)
        except (FreshetError, OSError, ValueError) as error:  # no other version, or the registry cannot be read
            self._counts["rollbacks_failed"] += 1
            log.error("guard: model %s cannot be rolled back: %s. It stays in use; the tests per user still "
                      "reduce trust in it. Run `freshet fit` again, or switch with `freshet models --select`",
                      finding.version, error)
            return None
        self._counts["rollbacks"] += 1
        log.error("guard: rolled back from model %s to %s", finding.version, update.model_version)
        return update

    def _roll_back(self, version: str, why: str) -> ModelUpdate:
        """Return the update that makes all roles load another version.

        If the harmful version is not the one in use, it was replaced meanwhile, or its rollback was not sent because of
        a crash. Its knowledge is withdrawn, and the version in use is announced again.
        """
        reason, now = f"guard: harm over {why}", self._clock()
        if self._deployments.in_use().model_version != version:
            return self._deployments.withdraw(version, now, reason, author=ROLE)
        harmful = {name for name in self.pools.versions if self._is_harmful(name)}
        return self._deployments.roll_back(now, reason, author=ROLE, harmful=harmful)

    def apply(self, update: ModelUpdate) -> None:
        """Take the bounds of the version in use; restart its test if it was found harmful and chosen all the same.

        Raises:
            ArtifactError: it is not here, or damaged.
        """
        artifact = self._deployments.registry.open(base_of(update.model_version))
        self._bound, self._cells = artifact.calibration().margin_bound, cells(artifact)
        if self._is_harmful(update.model_version):
            log.warning("guard: model %s did harm and is in use again: testing it from the start", update.model_version)
            del self.pools.versions[update.model_version]
            self._new = True
        log.info("guard: watching model %s, level %g", update.model_version, self._alpha)

    def _is_harmful(self, version: str) -> bool:
        held = self.pools.versions.get(version)
        return held is not None and bool(held.overall.harmful_at)

    def keep(self, *, force: bool = False) -> None:
        """Write the evidence if it changed and 5 s have passed, or at once with `force`.

        Call it between batches, when everything is committed.
        """
        now = time.monotonic()
        if not self._new or (not force and now - self._kept_at < _KEEP_EVERY_S):
            return
        self._kept_at, self._new = now, False
        write_whole(self._file, dumps(self.pools))

    def _load_evidence(self) -> Pools:
        try:
            return loads(self._file.read_bytes())
        except FileNotFoundError:
            return Pools()
        except NewerFormatError:
            raise  # a new file would replace it
        except FreshetError as error:
            log.warning("guard: %s: %s; starting without evidence", self._file, error)
            return Pools()


def cells(artifact: Artifact) -> int:
    """Return the number of codewords of a model over all instructions."""
    fitted = artifact.card.fit
    return max(1, int(fitted.get("instructions", 1)) * int(fitted.get("codes", 1)))


def main(settings: Settings) -> None:
    """Run the guard until SIGTERM.

    Raises:
        FreshetError: there is no model, or the broker cannot be used.
    """
    artifact = Registry(settings.home).open()
    kept = settings.home / "guard" / settings.kafka.full("evidence.msgpack")  # users of another prefix are others
    guard = Guard(
        Deployments(settings.home), kept, artifact.calibration().margin_bound,
        settings.refresh.pooled_alpha, cells(artifact))
    create_topics(settings.kafka)
    updates = ModelUpdates(settings, ROLE, artifact.model_version, guard.apply)
    updates.catch_up()

    def between() -> None:
        updates.poll()
        guard.keep()

    worker = StreamWorker(
        settings, ROLE, GUARD_GROUP, JUDGEMENTS, guard, batch=_BATCH, between=between,
        counters=lambda: guard.counters() | updates.counters(), forget=guard.forget)
    log.info("guard: watching model %s, level %g", artifact.model_version, settings.refresh.pooled_alpha)
    try:
        worker.run()
    finally:
        updates.close()
        guard.keep(force=True)
