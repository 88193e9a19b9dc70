"""`freshet evaluate`: trains a system, measures it under one protocol and stores the rank of every event.

A finished run has two files under `evaluations/` in the home folder: JSON with its figures and NPZ with its ranks.
Their name contains a hash of everything the run depends on: data, system, control, protocol, seed, settings and the
code of `models/`. A finished run is read instead of repeated. Two runs on the same data and protocol rank the same
rows, so they can be compared event by event.
"""

from __future__ import annotations

import hashlib
import inspect
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import orjson

from models.data.evidence import evidence
from models.data.loading import load_dataset
from schemas.errors import DataError
from schemas.files import write_whole, written_whole
from schemas.settings import Settings
from workers.terminal.stages import Stages, TrainingStages
from workers.training.code_hash import files_of, hash_of
from workers.training.item_knowledge import item_knowledge, knowledge_key
from workers.training.language import open_language
from workers.training.revision import revision
from workers.training.scorer_cache import ScorerCache

if TYPE_CHECKING:
    from models.evidence.item_knowledge import ItemKnowledge
    from models.language.item_cache import ItemCache
    from models.language.llm import LanguageModel
    from models.measuring.protocols import Split
    from models.systems.context import Context

FORMAT = 2  # format version of the result files


@dataclass(frozen=True, slots=True)
class EvaluationRun:
    """The parameters of one run.

    Args:
        system, control: names from `models.systems.table`; control None = the system itself.
        protocol: a name from `models.measuring.protocols`.
        seed: of every random choice.
        ages: whether to measure older knowledge too (only for systems with knowledge).
        events: maximum number of predicted events, the same events for every system; None = all.
        ties: how tied events are ordered and predicted, a name from `models.measuring.protocols.TIES`.
    """

    system: str
    protocol: str
    control: str | None = None
    seed: int = 0
    ages: bool = False
    events: int | None = None
    ties: str = "strict"


class Predicted(NamedTuple):
    """Predicted events.

    Args:
        event: (m,) place in the file; the same for every seed.
        user: (m,) user rows.
        known: (m,) bool, whether the item is known from the training part.
        start: (m,) bool, whether a session starts.
    """

    event: np.ndarray
    user: np.ndarray
    known: np.ndarray
    start: np.ndarray


class Evaluator:
    """Runs evaluations on one data set. Runs with the same protocol and seed share what is computed for them.

    Args:
        settings: settings of training; each run sets its own seed.
        folder: the data set.
        stages: shows progress.
        name: name of the data set in results; None = the folder's name.
    """

    def __init__(self, settings: Settings, folder: Path, stages: Stages, name: str | None = None) -> None:
        self.settings = replace(settings, home=settings.home.absolute())
        self.stages = stages
        with stages.stage("data", 300.0):
            self.dataset = evidence(load_dataset(folder, self.settings.events), self.settings.events.meaning)
        self._known = knowledge_key(self.settings, self.dataset)
        self._code = code_hash()  # hash the code that this process loaded, before anyone edits it
        self.name = name or folder.resolve().name
        self._llm: tuple[LanguageModel, ItemCache] | None = None
        self._context: tuple[tuple[str, str, int, int | None], Context] | None = None
        self._report: TrainingStages | None = None

    def run(self, wanted: EvaluationRun) -> dict[str, Any]:
        """Return the result of a run; a finished run is read from its file.

        Raises:
            FreshetError: the system, control or protocol is unknown, or there is not enough data.
        """
        from models.systems.table import system_named
        from models.systems.training import train

        system = system_named(wanted.system, wanted.control)
        path = self.path(wanted)
        if (found := read(path)) is not None and (not wanted.ages or "ages" in found):
            self.stages.say(f"{label(wanted)}: unchanged, reused")
            return found
        began = time.monotonic()
        with ExitStack() as opened:
            context = self._context_for(wanted, opened)
            self.stages.say(label(wanted))
            trained = train(system, wanted.control, context)
            return self._measure(wanted, context, trained, path, began, system.has_knowledge)

    def _measure(
        self, wanted: EvaluationRun, context: Context, trained: Any, path: Path, began: float, has_knowledge: bool,
    ) -> dict[str, Any]:
        from models.compute.devices import place
        from models.measuring import outcomes, protocols

        outcome = trained.rank(protocols.FRESH)
        result = {
            "format": FORMAT, "dataset": self.name, "data_hash": self.dataset.hash, "protocol": wanted.protocol,
            "ties": wanted.ties, "system": wanted.system, "control": wanted.control, "seed": wanted.seed,
            "metrics": outcomes.summary(outcome, context.split), "by": outcomes.breakdown(outcome, context.split),
            "training": trained.about, "seconds": 0.0, "revision": revision()}
        if wanted.ages and has_knowledge:
            result["ages"] = {
                age.name: outcomes.summary(outcome if age is protocols.FRESH else trained.rank(age), context.split)
                for age in protocols.AGES}
        elif wanted.ages:
            result["ages"] = {}
        result["seconds"] = round(time.monotonic() - began, 1)
        columns = {"row": outcome.ranks.rows, "rank": outcome.ranks.rank, "logp": outcome.ranks.logp.astype(np.float32)}
        if outcome.reference is not None:
            columns |= {"reference_rank": outcome.reference.rank,
                        "reference_logp": outcome.reference.logp.astype(np.float32)}
        here = place(self.settings.fit.device)
        if here.is_first:
            _write(path, result, columns)
        here.wait()
        return result

    def path(self, wanted: EvaluationRun) -> Path:
        """Return the path of a run's JSON file."""
        settings = self.settings
        own = own_code(wanted.system)
        llm = {key: value for key, value in asdict(settings.llm).items() if key not in {"device", "batch"}}
        fit = {key: value for key, value in asdict(settings.fit).items() if key not in {"seed", "system", "device"}}
        about = [FORMAT, self.dataset.hash, wanted.system, wanted.control, wanted.protocol, wanted.ties, wanted.seed,
                 wanted.events, self._code, fit, settings.state.history, llm, self._known, *own]
        digest = hashlib.sha256(orjson.dumps(about, option=orjson.OPT_SORT_KEYS)).hexdigest()
        ties = wanted.ties if wanted.ties != "strict" else ""
        name = "-".join(
            part for part in (wanted.system, wanted.control, wanted.protocol, ties, f"{wanted.seed}") if part)
        return settings.home / "evaluations" / f"{name}-{digest[:16]}.json"

    def ranks(self, wanted: EvaluationRun) -> dict[str, np.ndarray]:
        """Return the columns of a finished run: row, rank, logp and, with a reference, reference_rank, reference_logp.

        Raises:
            DataError: the run has not been done.
        """
        path = self.path(wanted).with_suffix(".npz")
        if not path.is_file():
            raise DataError(f"{label(wanted)} has not been run on {self.name}")
        with np.load(path, allow_pickle=False) as columns:
            return {name: columns[name] for name in columns.files}

    def predicted(self, wanted: EvaluationRun, rows: np.ndarray) -> Predicted:
        """Return what the rows (m,) of a finished run are."""
        split = self._split(wanted)
        return Predicted(split.test.index[rows], split.user(rows), split.seen(rows) > 0, split.starts(rows))

    def gain(self, wanted: EvaluationRun) -> tuple[float, float, float] | None:
        """Return a finished run's gain in NDCG@10 over its own reference with its 95% interval; None without reference.

        On items known from the training part, as all of the headline.
        """
        from models.measuring.intervals import paired_interval
        from models.measuring.metrics import ndcg

        columns, split = self.ranks(wanted), self._split(wanted)
        if "reference_rank" not in columns:
            return None
        known = split.seen(columns["row"]) > 0
        gain = ndcg(columns["rank"]) - ndcg(columns["reference_rank"])
        return paired_interval(split.user(columns["row"][known]), gain[known])

    def _split(self, wanted: EvaluationRun) -> Split:
        from models.measuring.protocols import protocol

        fraction = self.settings.fit.train_fraction
        return protocol(wanted.protocol, self.dataset, fraction, wanted.events, wanted.ties, wanted.seed)

    def _context_for(self, wanted: EvaluationRun, opened: ExitStack) -> Context:
        from models.systems.context import Context
        from workers.store.banks.bank import banks

        key = (wanted.protocol, wanted.ties, wanted.seed, wanted.events)
        if self._context is None or self._context[0] != key:
            settings = replace(self.settings, fit=replace(self.settings.fit, seed=wanted.seed))
            self._context = key, Context(
                self.dataset, self._split(wanted), settings, self._language, banks=banks(settings),
                keep=ScorerCache(settings.home / "cache" / "scorers"),
                items=self._items)
        self._context[1].report = self._report = TrainingStages(self.stages, opened)
        return self._context[1]

    def _items(self) -> ItemKnowledge:
        if self._report is not None:
            self._report.close()
        return item_knowledge(self.settings, self.dataset, self.stages)

    def _language(self) -> tuple[LanguageModel, ItemCache]:
        if self._llm is None:
            if self._report is not None:
                self._report.close()
            self._llm = open_language(self.settings, self.dataset.texts, self.stages)
        return self._llm


def label(wanted: EvaluationRun) -> str:
    """Return a readable name of a run."""
    control = f" ({wanted.control})" if wanted.control else ""
    ties = f", ties {wanted.ties}" if wanted.ties != "strict" else ""
    return f"{wanted.system}{control}, {wanted.protocol}{ties}, seed {wanted.seed}"


def read(path: Path) -> dict[str, Any] | None:
    """Return a finished run's result, or None if it is missing, damaged or in another format."""
    if not (path.is_file() and path.with_suffix(".npz").is_file()):
        return None
    try:
        result = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError:
        return None
    return result if result.get("format") == FORMAT else None


def code_hash() -> str:
    """Return a hash of the code that results depend on: `models/`."""
    return hash_of(files_of("models"))


def own_code(system: str) -> list[str]:
    """Return hashes of the files of a row's backbone if it is from outside this repository, else []."""
    from models.scorers.backbones import BACKBONES
    from models.systems.table import SYSTEMS

    build = BACKBONES.get(SYSTEMS[system].backbone) if system in SYSTEMS else None
    return [] if build is None else [hash_of([Path(inspect.getfile(build))])]


def _write(path: Path, result: dict[str, Any], columns: dict[str, np.ndarray]) -> None:
    """Write both files atomically. The JSON file is written last: its presence marks the run as finished."""
    with written_whole(path.with_suffix(".npz")) as scratch, scratch.open("wb") as file:
        np.savez_compressed(file, **columns)  # type: ignore[arg-type]
    write_whole(path, orjson.dumps(result, option=orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY))
