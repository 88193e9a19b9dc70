"""Titles of all items, for people: those of the model in use, and those that came on the topic since."""

from __future__ import annotations

from schemas.settings import Settings
from schemas.topics import CATALOGUE
from workers.catalogue.reader import Versions, entries_of
from workers.home.titles import Titles, read_titles
from workers.kafka.reader import read_all


def known_titles(settings: Settings, last: int = 100_000) -> Titles:
    """Return the titles that the home and the broker know.

    Args:
        last: read at most so many of the topic's newest records.

    Raises:
        FreshetError: no broker answers.
    """
    entries, _ = entries_of(read_all(settings.kafka, [CATALOGUE.name], last=last), Versions())
    return read_titles(settings.home).joined({entry.item_id: entry.title for entry in entries if entry.title})
