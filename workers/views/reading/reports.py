"""Models, experiment and settings as facts: from the registry's files, the topics and this process's environment."""

from __future__ import annotations

import logging
import threading
import time
import tomllib
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from schemas.artifacts import Card
from schemas.codec import decode
from schemas.deployments import Deployments, base_of
from schemas.errors import FreshetError, PoisonError
from schemas.messages import Recommendation
from schemas.reading.reader import EventReader, ReadEvent
from schemas.settings import CONFIG, Settings, rows
from schemas.topics import BEHAVIOUR_EVENTS, RECOMMENDATIONS
from workers.views.summary import (
    Deployment,
    EffectiveSetting,
    Experiments,
    ModelRow,
    Models,
    PartWorth,
)

log = logging.getLogger(__name__)
_KEPT_S = 60.0  # figures of an experiment are computed at most this often
_NEWEST = 50_000  # records per partition that they are computed from
_SHOWN = 100  # lines of the deployment log


def models(home: Path) -> Models:
    """Return versions, adapters and deployments; what cannot be read is named."""
    deployments = Deployments(home)
    try:
        in_use, problem = deployments.in_use(), ""
    except (FreshetError, OSError, ValueError) as error:
        return Models("", (), (), str(error))
    withdrawn = deployments.withdrawn()
    found = []
    for version in deployments.registry.versions():
        state, why = "in_use" if version == base_of(in_use.model_version) else "", ""
        if (line := withdrawn.get(version)) is not None:
            state, why = "withdrawn", line.reason
        try:
            found.append(_version(deployments.registry.card(version), state, why))
        except FreshetError as error:
            found.append(ModelRow(version, "", "", 0.0, {}, (), state, why, str(error)))
    for attempt in deployments.attempts():
        state, why = "published" if attempt.published else "rejected", attempt.reason
        if attempt.model_version == in_use.model_version:
            state = "in_use"
        elif (line := withdrawn.get(attempt.model_version)) is not None:
            state, why = "withdrawn", line.reason
        found.append(ModelRow(attempt.model_version, attempt.base, "", attempt.created_at, dict(attempt.figures), (),
                              state, why))
    lines = deployments.log()[-_SHOWN:]
    return Models(in_use.model_version, tuple(found), tuple(
        Deployment(line.update.published_at, line.update.model_version, line.by, line.author, line.reason, line.left)
        for line in reversed(lines)), problem)


def _version(card: Card, state: str, why: str) -> ModelRow:
    parts = tuple(PartWorth(part.part, part.adds, part.low, part.high, part.used) for part in card.parts)
    return ModelRow(card.model_version, "", card.system, card.created_at, dict(card.metrics), parts, state, why)


def settings_in_use(settings: Settings, environ: Mapping[str, str]) -> tuple[EffectiveSetting, ...]:
    """Return every setting with where its value comes from.

    The supervisor hands all of them on as variables, so a variable that says what the file says counts as the file's.
    """
    written = _file(environ)
    out = []
    for row in rows():
        value = getattr(getattr(settings, row.section), row.name) if row.section else settings.home
        section = written.get(row.section) if row.section else written
        in_file = isinstance(section, dict) and row.name in section and str(section[row.name]) == str(value)
        source = "default" if str(value) == str(row.default) else "file" if in_file else "variable"
        if row.secret and environ.get(row.file_variable):
            source = "secret file"
        shown = ("set" if value else "") if row.secret else "" if value is None else str(value)
        out.append(EffectiveSetting(row.variable, row.section, row.name, shown,
                                    "" if row.default is None else str(row.default), source, row.description,
                                    row.secret))
    return tuple(out)


def _file(environ: Mapping[str, str]) -> dict[str, Any]:
    try:
        return tomllib.loads(Path(environ.get(CONFIG) or "freshet.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


class ExperimentFigures:
    """Figures of the running experiment, computed in a thread of their own from the newest records of two topics."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._asked = float("-inf")
        self._last = Experiments(settings.experiment.name, settings.experiment.control, None, "", None)

    def now(self) -> Experiments:
        """Return the last figures, and have them computed again if they are a minute old."""
        with self._lock:
            if self._settings.experiment.name and time.monotonic() - self._asked > _KEPT_S:
                self._asked = time.monotonic()
                threading.Thread(target=self._compute, name="experiment", daemon=True).start()
            return self._last

    def _compute(self) -> None:
        one = self._last
        try:
            figures, problem = self._figures(), ""
        except FreshetError as error:
            figures, problem = None, str(error)
        except Exception as error:  # the page says that there are none; nothing else depends on them
            log.exception("console: the experiment's figures cannot be computed")
            figures, problem = None, type(error).__name__
        self._last = replace(one, figures=figures, problem=problem, computed_at=time.time())

    def _figures(self) -> dict[str, Any]:
        from workers.kafka.reader import read_all
        from workers.measurement.experiment import RunningExperiment, chosen, fold

        records: list[tuple[float, ReadEvent | Recommendation]] = []
        reader = EventReader(self._settings.events)
        names: Counter[str] = Counter()
        for message in read_all(self._settings.kafka, [BEHAVIOUR_EVENTS.name, RECOMMENDATIONS.name], last=_NEWEST):
            try:
                if self._settings.kafka.plain(message.topic() or "") == BEHAVIOUR_EVENTS.name:
                    events, _ = reader.record(message.value(), message.headers() or ())
                    records.extend((message.timestamp()[1] / 1000, event) for event in events)
                else:
                    recommendation = decode(Recommendation, message.value())
                    names[recommendation.experiment] += 1
                    records.append((0.0, recommendation))
            except PoisonError:
                continue
        del names[""]
        trial = RunningExperiment(chosen(self._settings.experiment, names))
        fold(trial, records, self._settings.events.meaning)
        return trial.figures()

