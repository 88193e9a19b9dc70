"""Finds what the stories are told from: the users' states in the changelog, the catalogue, the thresholds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import orjson

from models.data.dataset import Dataset
from models.data.written import PLACE, read_written
from schemas.artifacts import Artifact
from schemas.errors import FreshetError
from schemas.settings import KafkaSettings, Settings
from schemas.topics import CHANGELOG
from streams.detection.drift import Detector
from streams.profile.state import loads
from workers.demo.diary import Turn
from workers.demo.stories import KINDS, Pulse, UserStory, chosen, pulses, told, words_of
from workers.kafka.reader import read_all
from workers.supervision.health import counters_path

_NEWEST = 10_000  # states per partition that are looked through: a second for all three users of the MovieLens demo


def users_of(turns: Sequence[Turn]) -> list[str]:
    """Return the users of the stories that have a statistic."""
    found = [chosen(turns, kind)[0] for kind in ("drift", "contradiction")]
    return list(dict.fromkeys(turn.user for turn in found if turn is not None))


def recorded(kafka: KafkaSettings, users: Iterable[str]) -> dict[str, list[Pulse]]:
    """Return users' statistics as far as the changelog still has their states; {} if it cannot be read."""
    out: dict[str, list[Pulse]] = {}
    for user in users:
        key = user.encode()
        try:
            records = read_all(kafka, [CHANGELOG], key=key, last=_NEWEST)
            out[user] = pulses([loads(record.value()) for record in records
                                if record.key() == key and record.value()])
        except FreshetError:  # a story without its curve is better than no report
            continue
    return out


def counters(settings: Settings) -> dict[str, Any]:
    """Return the knowledge role's counters; {} if it has written none."""
    try:
        found = orjson.loads(counters_path(settings, "knowledge").read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return {}
    return found if isinstance(found, dict) else {}


def tell(
    turns: Sequence[Turn], dataset: Dataset, artifact: Artifact, settings: Settings, beats: dict[str, list[Pulse]],
) -> dict[str, UserStory | None]:
    """Return the story of each kind, None for a kind that did not occur."""
    limits = {"drift": Detector.of(artifact.calibration(), settings.refresh).threshold,
              "contradiction": 1.0 / settings.refresh.alpha}
    written = read_written(settings.home / PLACE, dataset.items, dataset.texts) or dataset.written
    words = words_of(dict(zip(dataset.items, dataset.texts, strict=True)),
                     dict(zip(dataset.items, dataset.titles, strict=True)), written.texts if written else {})
    counts = Counter(word for item in dataset.items for word in set(words(item)))
    usual = {word: count / len(dataset.items) for word, count in counts.items()}
    out: dict[str, UserStory | None] = {}
    for kind in KINDS:
        turn, among = chosen(turns, kind)
        out[kind] = None if turn is None else told(
            turn, among, _taken(dataset, turn.user), words, beats.get(turn.user, ()), limits, usual)
    return out


def _taken(dataset: Dataset, user: str) -> list[str]:
    """Return all items of a user in the order of their events."""
    row = dataset.users.index(user)
    return [dataset.items[item] for item in dataset.events.item[np.flatnonzero(dataset.events.user == row)]]
