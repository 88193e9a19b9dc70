"""What is known of a catalogue's items, for a fit or an evaluation: texts, what was written of them, and encodings."""

from __future__ import annotations

import hashlib
from pathlib import Path

from models.data.dataset import Dataset
from models.data.written import PLACE, read_written
from models.evidence.item_knowledge import ItemKnowledge
from schemas.settings import Settings
from workers.terminal.stages import Stages

ENCODER_STALL_S = 300.0  # seconds without progress after which the stage counts as hung


def item_knowledge(settings: Settings, dataset: Dataset, stages: Stages) -> ItemKnowledge:
    """Return the item knowledge of a data set, in the order of its items.

    Args:
        settings: of encoder and written knowledge.
        stages: shows progress.

    Raises:
        FreshetError: the encoder cannot be loaded, or written knowledge cannot be read.
        StalledError: the encoder made no progress.
    """
    written = written_items(settings, dataset)
    name = settings.items.encoder_name
    if not name or not any(dataset.texts):
        return ItemKnowledge(dataset.texts, written)
    from models.language.sentences import SentenceEncoder, encoded

    with stages.stage("sentence encoder", ENCODER_STALL_S) as step:
        vectors = encoded(SentenceEncoder.load(name, settings.llm.device), dataset.texts, encodings(settings), step)
    return ItemKnowledge(dataset.texts, written, vectors)


def encodings(settings: Settings) -> Path:
    """Return the folder of the catalogues' encodings."""
    return settings.home / "cache" / "sentences"


def written_items(settings: Settings, dataset: Dataset) -> list[str] | None:
    """Return what was written of each item, "" = nothing; None if nothing was written of any.

    What `freshet describe` keeps in the home folder goes before what lies in the data folder.

    Raises:
        DataError: the home's file cannot be read.
    """
    own = read_written(settings.home / PLACE, dataset.items, dataset.texts)
    given = dict(dataset.written.texts if dataset.written else {}) | dict(own.texts if own else {})
    return [given.get(item, "") for item in dataset.items] if given else None


def knowledge_key(settings: Settings, dataset: Dataset) -> str:
    """Return a hash of what `item_knowledge` depends on besides the data set's own hash."""
    digest = hashlib.sha256(settings.items.encoder_name.encode())
    for text in written_items(settings, dataset) or []:
        digest.update(f"|{len(text)}|{text}".encode())
    return digest.hexdigest()
