"""What is known of a catalogue's items, for a fit or an evaluation."""

from __future__ import annotations

from models.data.dataset import Dataset
from models.evidence.item_knowledge import ItemKnowledge
from schemas.settings import Settings
from workers.terminal.stages import Stages


def item_knowledge(settings: Settings, dataset: Dataset, stages: Stages) -> ItemKnowledge:
    """Return the item knowledge of a data set, in the order of its items.

    Args:
        settings: of encoder and written knowledge.
        stages: shows progress.
    """
    return ItemKnowledge(dataset.texts)
