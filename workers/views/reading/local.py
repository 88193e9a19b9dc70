"""The views of one process: tables, recent figures, catalogue and status put together."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import orjson
from pydantic import ValidationError

from schemas.errors import FreshetError
from schemas.messages import DeadLetter
from schemas.settings import Settings
from schemas.topics import TOPICS
from workers.measurement.dead_letters import by_kind, headers_of, key_of, of_user, replayable, value_of
from workers.views.facts import ItemPage, Letter, Refresh, ShownList, UserFacts, UserPage
from workers.views.reading import tables
from workers.views.reading.catalogue import ShownItems
from workers.views.reading.folding import ViewsFold
from workers.views.reading.recent import Recent
from workers.views.reading.reports import ExperimentFigures, models, settings_in_use
from workers.views.reading.status import Status, problems
from workers.views.reading.stored import Stored
from workers.views.reading.tables import Tables
from workers.views.reading.tables import key_of as row_key
from workers.views.reading.users import UserLimits, judged_margins, refreshes, shown_lists, state_steps, user_facts
from workers.views.summary import EffectiveSetting, Experiments, LetterGroup, Letters, Matches, Models, Overview

_SHOWN = 20  # letters of a group
_OF_USER = 2000  # newest letters that are searched for a user's
_OVERVIEW_S = 1.0
_FOUND, _SEARCH_S = 50, 2.0  # items that a search returns, and how long it may look through titles


class LocalViews:
    """`workers.views.interface.Views` over what this process has read.

    Args:
        share_read: returns the share of the topics that is read since the start.
        behind: returns how many records are not read yet.
        read: returns how many are.
    """

    def __init__(
        self, settings: Settings, held: Tables, recent: Recent, fold: ViewsFold, catalogue: ShownItems, status: Status,
        stored: Stored, *, caught_up: Callable[[], bool], share_read: Callable[[], float], behind: Callable[[], int],
        read: Callable[[], int],
    ) -> None:
        self._settings = settings
        self._tables = held
        self._recent = recent
        self._fold = fold
        self._catalogue = catalogue
        self._status = status
        self._stored = stored
        self._caught_up, self._share_read, self._behind, self._read = caught_up, share_read, behind, read
        self._experiment = ExperimentFigures(settings)
        self._lock = threading.Lock()
        self._overview: tuple[float, Overview] | None = None

    @property
    def caught_up(self) -> bool:
        """See `Views`."""
        return self._caught_up()

    @property
    def share_read(self) -> float:
        """See `Views`."""
        return self._share_read()

    def lists(self, user_id: str) -> tuple[ShownList, ...]:
        """See `Views`."""
        row = self._tables.read(tables.SHOWN, row_key(user_id))
        return shown_lists(tables.lists_in(row), self._catalogue.title)

    def refreshes(self, user_id: str) -> tuple[Refresh, ...]:
        """See `Views`."""
        key = row_key(user_id)
        return refreshes(tables.refreshes_in(self._tables.read(tables.MADE, key)),
                         tables.lists_in(self._tables.read(tables.SHOWN, key)), self._catalogue.title)

    def state(self, user_id: str) -> UserFacts | None:
        """See `Views`."""
        row = self._tables.read(tables.STATE, row_key(user_id))
        if row is None:
            return None
        at, data = tables.unpack_state(row)
        limits = UserLimits.of(self._settings.refresh, self._catalogue.calibration)
        try:
            return user_facts(data, at, limits, self._catalogue.title)
        except FreshetError:  # damaged, or a newer release's: streams says so, this only shows
            return None

    def user(self, user_id: str) -> UserPage:
        """See `Views`."""
        key = row_key(user_id)
        stored, problem = self._stored.user(user_id)
        letters = list(self._fold.letters.items())[-_OF_USER:]
        whole = {id(letter): number for number, letter in letters}
        theirs = of_user([letter for _, letter in letters], user_id)
        return UserPage(
            user_id, self.state(user_id), self.lists(user_id), self.refreshes(user_id), stored, problem,
            judged_margins(tables.margins_in(self._tables.read(tables.JUDGED, key)), self._catalogue.title),
            tuple(_letter(whole[id(letter)], letter) for letter in reversed(theirs)),
            state_steps(tables.steps_in(self._tables.read(tables.STEPS, key))))

    def item(self, item_id: str) -> ItemPage:
        """See `Views`."""
        held, entry = self._catalogue.item(item_id), self._catalogue.entry(item_id)
        takers = self._recent.takers(item_id)
        attributes: dict[str, Any] = {} if entry is None else entry.attributes | {"available": entry.available}
        if text := (entry.text if entry else "") or (held.text if held else ""):
            attributes["text"] = text
        near, problem = self._stored.near(item_id) if held or entry else ((), "")
        return ItemPage(
            item_id, held is not None or entry is not None or bool(takers), self._catalogue.title(item_id), attributes,
            held.written if held else "", self._catalogue.model_version,
            self._catalogue.by_behaviour(held.row) if held else (), near, takers, problem)

    def search(self, text: str) -> Matches:
        """See `Views`."""
        key = row_key(text)
        known = any(self._tables.read(kind, key) is not None for kind in tables.OF_USER)
        return Matches((text,) if known else (), tuple(self._catalogue.search(text, _FOUND, _SEARCH_S)))

    def overview(self) -> Overview:
        """See `Views`."""
        with self._lock:
            now = time.monotonic()
            if self._overview is None or now - self._overview[0] > _OVERVIEW_S:
                self._overview = now, self._whole(time.time())
            return self._overview[1]

    def _whole(self, now: float) -> Overview:
        health = self._status.health()
        roles, minutes = self._status.roles(health), self._recent.minutes(now)
        llm = self._status.counters("knowledge")
        freshness = self._recent.knowledge_freshness
        return Overview(
            at=now, caught_up=self.caught_up, read=self._read(), behind=self._behind(), users=self._fold.users,
            events_per_s=self._status.events_per_s, lists_per_s=self._status.lists_per_s, roles=roles, minutes=minutes,
            knowledge_freshness=freshness, list_freshness=self._recent.list_freshness,
            quality=self._recent.quality, margins=self._recent.mean_margin, llm_cost=_number(llm.get("cost")),
            llm_calls=_integer(llm.get("llm_calls")), llm_tokens=_integer(llm.get("llm_tokens")),
            model_version=self._catalogue.model_version,
            problems=tuple(problems(roles, health, minutes, freshness, self._status.broker_problem,
                                    self._catalogue.problem)),
            recent=self._recent.users)

    def dead_letters(self) -> Letters:
        """See `Views`."""
        held = list(self._fold.letters.items())
        numbers = {id(letter): number for number, letter in held}
        letters = [letter for _, letter in held]
        good = {id(letter) for letter in replayable(letters, map(self._settings.kafka.full, TOPICS))[0]}
        groups = []
        for kind in by_kind(letters):
            own = kind.letters
            groups.append(LetterGroup(
                kind.topic, kind.reason, kind.count, kind.last, sum(id(one) in good for one in own),
                tuple(_letter(numbers[id(one)], one) for one in own[:-_SHOWN - 1:-1])))
        return Letters(self._fold.letters_seen, len(held), tuple(groups))

    def dead_letter(self, number: int) -> Letter | None:
        """See `Views`."""
        if not 0 <= number < 2**63:
            return None
        data = self._tables.read(tables.LETTER, tables.pack_number(number))
        try:
            return None if data is None else _letter(number, DeadLetter.model_validate(orjson.loads(data)))
        except (orjson.JSONDecodeError, ValidationError):
            return None

    def models(self) -> Models:
        """See `Views`."""
        found = models(self._settings.home)
        return found if found.problem else replace(found, problem=self._catalogue.problem)

    def experiments(self) -> Experiments:
        """See `Views`."""
        return self._experiment.now()

    def settings(self) -> tuple[EffectiveSetting, ...]:
        """See `Views`."""
        return settings_in_use(self._settings, os.environ)


def _letter(number: int, letter: DeadLetter) -> Letter:
    return Letter(number, letter.topic, letter.partition, letter.offset, letter.reason, letter.role, letter.failed_at,
                  value_of(letter), key_of(letter), tuple(headers_of(letter)))


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _integer(value: object) -> int | None:
    return int(value) if isinstance(value, int | float) else None
