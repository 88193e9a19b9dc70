"""`freshet fit`: fits a model on a data set, calibrates it and publishes it as a new version.

Unchanged work is reused: item states are cached per language model and catalogue, and a whole version is reused if
data, settings and code are the same.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import orjson
from safetensors.numpy import load_file

from models.data import dataset as data
from models.data.evidence import NO_EVIDENCE, evidence
from models.data.loading import load_dataset
from models.data.written import PLACE
from models.systems.table import served_system
from schemas.artifacts import Artifact, Card, Registry, write_card
from schemas.calibration import Calibration, table
from schemas.deployments import Deployments
from schemas.errors import ArtifactError, DataError, FreshetError
from schemas.settings import Settings
from streams.calibration.rehearsal import choose_ttl
from streams.calibration.thresholds import calibrate_drift, choose_margin_bound, choose_min_history
from streams.decisions.planner import Planner
from streams.profile.catalogue import ItemVectors
from streams.profile.fold import Event
from workers.home.lock import run_folder
from workers.home.titles import write_titles
from workers.terminal.stages import Stages, TrainingStages
from workers.training.code_hash import files_of, hash_of
from workers.training.item_knowledge import item_knowledge, knowledge_key
from workers.training.language import open_language
from workers.training.revision import revision
from workers.training.thresholds import by_user

if TYPE_CHECKING:  # these import torch, which a fit that reuses everything does not need
    from models.evidence.item_knowledge import ItemKnowledge
    from models.fitting.freshet import Fitted
    from models.fitting.row import FittedRow
    from models.language.item_cache import ItemCache
    from models.language.llm import LanguageModel

STORE_STALL_S = 300.0
THRESHOLDS_STALL_S = 300.0  # seconds without progress after which the stage counts as hung
# Parameters of the drift detector. A false alarm costs one LLM call, a missed drift many events with old knowledge.
PRIOR = 1.0  # events; detects 47% of planted drifts within 10 events, 39% with 10.0 and slack 0.5
SLACK = 0.75  # standard deviations; detects sooner than the textbook value 0.5, see docs/drift.md
FALSE_ALARM_EVERY = 200.0  # a user's events per needless refresh on histories without drift
# Staleness is the last resort: after a user's first refresh, at most two in three refreshes may have this reason. With
# one in two, returning MovieLens users would get knowledge that is up to 58 days old; with two in three, 19 days.
STALE_SHARE = 2 / 3
# Calibration of a system without knowledge of users: nothing is ever requested, and the other values are never used.
WITHOUT_KNOWLEDGE = Calibration(
    min_history=1, ttl_s=1e12, drift_mean=0.0, drift_sd=1.0, drift_prior=PRIOR, drift_slack=SLACK, drift_threshold=1e9,
    drift_false_alarm_every=1e12, margin_bound=1.0, epsilon=0.0, knowledge=False)
REHEARSED = 30_000  # events, of as many users as needed; enough for the time to live, which is a quantile


def run(settings: Settings, folder: Path, stages: Stages) -> Artifact:
    """Fit on the first `fit.train_fraction` of the events in `folder` and put the result into use.

    Args:
        settings: `fit.system` names the system to fit.
        folder: the data set.
        stages: shows progress.

    Raises:
        DataError: the data cannot be used.
        FreshetError: the system is unknown, or the language model cannot be loaded.
        StalledError: a stage made no progress.
    """
    settings = replace(settings, home=settings.home.absolute())
    served_system(settings.fit.system)
    with stages.stage("data", 300.0):
        dataset = evidence(load_dataset(folder, settings.events), settings.events.meaning)
        past, _ = data.split(dataset, settings.fit.train_fraction)
    for line in [line for account in dataset.accounts for line in account.lines()] + [
            f"note: {warning}" for warning in dataset.warnings] + (
            dataset.written.lines(str(PLACE)) if dataset.written else []):
        stages.say(f"  {line}")
    if dropped := dataset.skipped.get(NO_EVIDENCE, 0):
        stages.say(f"  {dropped:,} events are no evidence of interest: against an item, taken back, or neutral")
    key = fit_key(f"{dataset.hash}|{knowledge_key(settings, dataset)}", settings)
    artifact = published(Registry(settings.home), key)
    if artifact is None:
        artifact = _fit(settings, dataset, past, key, stages)
    else:
        stages.reused("models")
    for line in table(artifact.card.parts):
        stages.say(f"  {line}")
    _store_items(settings, artifact, stages)
    _put_into_use(Deployments(settings.home), artifact.model_version, stages)
    path = run_folder(settings.home) / "fit.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(orjson.dumps({"model_version": artifact.model_version, "stages": stages.times}))
    return artifact


def _store_items(settings: Settings, artifact: Artifact, stages: Stages) -> None:
    """Write item knowledge to the store that the settings name, if any. The knowledge role does it, too."""
    from workers.store.item_files import ItemPoints
    from workers.store.items import QdrantItems, write_missing

    if not settings.qdrant.url or not (points := ItemPoints(artifact, settings.items.encoder_name)):
        return
    with stages.stage("item store", STORE_STALL_S) as step:
        try:
            store = QdrantItems.at(settings, points.dim)
            store.ensure()
            for seen, _ in write_missing(store, points):
                step(seen, len(points))
            store.close()
        except FreshetError as error:
            stages.say(f"note: {error}; the knowledge role writes item knowledge when it starts")


def _put_into_use(deployments: Deployments, version: str, stages: Stages) -> None:
    """Make all roles use a fitted version, those that run within seconds.

    A version that was fitted before and rolled back since is not put into use again: the same data would give the same
    harm.
    """
    withdrawn = deployments.withdrawn().get(version)
    if withdrawn is None:
        deployments.fitted(version, time.time())
        return
    why = withdrawn.reason or "no reason given"
    stages.say(f"  {version} was fitted on the same data before and rolled back ({why}); "
               f"{deployments.in_use().model_version} stays in use. `freshet models --select {version}` uses it anyway")


def fit_key(data_hash: str, settings: Settings) -> str:
    """Return a hash of everything that a fitted version depends on: data and item knowledge, settings, code."""
    digest = hashlib.sha256(data_hash.encode())
    parts = [asdict(part) for part in (settings.fit, settings.state, settings.llm)]
    for part in parts:  # these change where and how fast it runs, but not the result
        part.pop("device", None)
        part.pop("batch", None)
    digest.update(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS))
    digest.update(hash_of(files_of("models", "streams", "workers/training/fit.py")).encode())
    return digest.hexdigest()


def still_improving(card: Card) -> list[str]:
    """Return the scorers of a fitted version that were still improving in the last epoch."""
    last = card.settings["fit"]["epochs"]
    return [name for name in ("reference", "fused") if card.metrics.get(f"{name}_epoch", 0.0) >= last]


def published(registry: Registry, key: str) -> Artifact | None:
    """Return the newest intact version that was fitted with this key, or None."""
    for version in reversed(registry.versions()):
        try:
            artifact = registry.open(version)
        except ArtifactError:
            continue  # damaged: fit again
        if artifact.card.settings.get("fit_key") == key:
            return artifact
    return None


def _fit(settings: Settings, dataset: data.Dataset, past: data.Events, key: str, stages: Stages) -> Artifact:
    """Train and publish. Under torchrun, only the first process publishes and the others wait for it."""
    from models.compute.devices import place

    known: list[ItemKnowledge] = []
    with ExitStack() as opened:
        fitted = _trained(settings, dataset, past, stages, TrainingStages(stages, opened), known)
    here = place(settings.fit.device)
    if here.is_first:
        _publish(fitted, settings, dataset, past, key, stages, known)
    here.wait()
    artifact = published(Registry(settings.home), key)
    if artifact is None:
        raise ArtifactError("the first process did not publish a model; see its output")
    return artifact


def _publish(
    fitted: Fitted | FittedRow, settings: Settings, dataset: data.Dataset, past: data.Events, key: str, stages: Stages,
    known: list[ItemKnowledge],
) -> None:
    from models.data.popular import popular_items
    from workers.store.item_files import POPULAR, save_items

    version = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{key[:6]}"
    registry = Registry(settings.home)
    with registry.publish(version) as folder:
        fitted.save(folder, dataset.items, dataset.texts)
        write_titles(folder, dataset.titles)
        (folder / POPULAR).write_bytes(orjson.dumps(
            popular_items(dataset, past, settings.ranking.popular_days * 86_400.0)))
        for items in known:
            save_items(folder, items.written, items.encoded, settings.items.encoder_name)
        with stages.stage("refresh thresholds", THRESHOLDS_STALL_S):
            vectors = ItemVectors(dataset.items, load_file(folder / "interest.safetensors")["items"])
            calibration = WITHOUT_KNOWLEDGE.model_copy(update={
                "epsilon": fitted.epsilon, "evidence": fitted.evidence,
            }) if fitted.knowledge is None else calibrate(dataset, past, vectors, settings, fitted)
        (folder / "calibration.json").write_text(calibration.model_dump_json(indent=2))
        write_card(folder, Card(
            model_version=version, created_at=time.time(), sequence=registry.next_sequence(), data_hash=dataset.hash,
            settings={"fit_key": key, "fit": asdict(settings.fit), "state": asdict(settings.state),
                      "llm": asdict(settings.llm)},
            metrics=fitted.metrics, parts=fitted.parts, revision=revision(), split_time=float(past.time[-1]), files={}))


def _trained(
    settings: Settings, dataset: data.Dataset, past: data.Events, stages: Stages, report: TrainingStages,
    known: list[ItemKnowledge],
) -> Fitted | FittedRow:
    """Train the system that the settings name. The language model is loaded when it is first needed.

    Args:
        known: gets the item knowledge, if the system uses it.
    """
    from models.data.fold import Fold
    from models.fitting.freshet import fit
    from models.fitting.row import fit_row, training_split
    from models.systems.context import Context
    from workers.store.banks.bank import banks
    from workers.training.scorer_cache import ScorerCache

    def language() -> tuple[LanguageModel, ItemCache]:
        report.close()
        return open_language(settings, dataset.texts, stages)

    def items() -> ItemKnowledge:
        report.close()
        known[:] = [item_knowledge(settings, dataset, stages)]
        return known[0]

    system = served_system(settings.fit.system)
    keep = ScorerCache(settings.home / "cache" / "scorers")  # an interrupted fit resumes after the last trained scorer
    if system.backbone == "sasrec+text+evidence":
        return fit(dataset, past, settings, *language(), report, keep, items())
    split = training_split(Fold.of(past, len(dataset.users), len(dataset.items), seed=settings.fit.seed))
    return fit_row(system, Context(dataset, split, settings, language, report, banks(settings), keep, items))


def calibrate(
    dataset: data.Dataset, past: data.Events, vectors: ItemVectors, settings: Settings, fitted: Fitted | FittedRow,
) -> Calibration:
    """Return the thresholds of streams and ranking, with the evidence for each choice."""
    histories = by_user(past, np.arange(len(dataset.items)), len(dataset.users))
    # Use the larger of the two. From `fitted.min_history` events on, knowledge does no harm. The other limit avoids
    # spending LLM calls on users of whom almost nothing is known.
    min_history = max(fitted.min_history, choose_min_history(histories))
    try:
        drift = calibrate_drift(
            histories, vectors, settings.state, prior=PRIOR, slack=SLACK, false_alarm_every=FALSE_ALARM_EVERY,
            first=min_history, cooldown=settings.refresh.cooldown, seed=settings.fit.seed)
    except DataError:  # no user has that many events: generate knowledge as soon as it does no harm
        min_history = fitted.min_history
        drift = calibrate_drift(
            histories, vectors, settings.state, prior=PRIOR, slack=SLACK, false_alarm_every=FALSE_ALARM_EVERY,
            first=min_history, cooldown=settings.refresh.cooldown, seed=settings.fit.seed)
    margin_bound, judged = choose_margin_bound(fitted.margins)
    without_ttl = Calibration(
        min_history=min_history, ttl_s=1e12, drift_mean=drift.mean, drift_sd=drift.sd, drift_prior=PRIOR,
        drift_slack=SLACK, drift_threshold=drift.threshold, drift_false_alarm_every=drift.false_alarm_every,
        margin_bound=margin_bound, epsilon=fitted.epsilon)

    def planner_with(ttl_s: float) -> Planner:
        return Planner(vectors, without_ttl.model_copy(update={"ttl_s": ttl_s}), settings)

    ttl_s, rehearsal = choose_ttl(_rehearsed(dataset, past), planner_with, stale_share=STALE_SHARE)
    evidence = {
        "stale_share": rehearsal.stale_share,
    } | drift.evidence() | {f"rehearsed_{reason}": float(count) for reason, count in rehearsal.refreshes.items()}
    return without_ttl.model_copy(update={"ttl_s": ttl_s, "evidence": fitted.evidence | judged | evidence})


def _rehearsed(dataset: data.Dataset, events: data.Events) -> Sequence[Event]:
    """Return the events, in time order, of enough randomly chosen users to reach `REHEARSED` events."""
    counts = np.bincount(events.user, minlength=len(dataset.users))
    order = np.random.default_rng(0).permutation(len(counts))
    chosen = np.zeros(len(counts), dtype=bool)
    chosen[order[: int(np.searchsorted(np.cumsum(counts[order]), REHEARSED)) + 1]] = True
    return [
        Event(dataset.users[events.user[row]], dataset.items[events.item[row]], float(events.time[row]),
              dataset.types[events.type[row]], f"{row}", row, float(events.time[row]))
        for row in np.flatnonzero(chosen[events.user]).tolist()]
