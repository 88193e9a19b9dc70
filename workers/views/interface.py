"""The interface of the views. The console's pages and the HTTP interface know nothing else of the read model."""

from __future__ import annotations

from typing import Protocol

from workers.views.facts import ItemPage, Letter, Refresh, ShownList, UserFacts, UserPage
from workers.views.summary import EffectiveSetting, Experiments, Letters, Matches, Models, Overview


class Views(Protocol):
    """What the topics, the store and the models say, at the moment of the call. Safe to call from several threads.

    `lists`, `refreshes` and `state` read one key of a local table and take well below a millisecond: call them where
    you are. The others may ask the store, read files or compute: call them in a thread
    (`starlette.concurrency.run_in_threadpool`). None of them raises for an id that is not known.
    """

    @property
    def caught_up(self) -> bool:
        """Whether every topic has been read to where it ended when this process started."""

    @property
    def share_read(self) -> float:
        """Share of the records that were there at the start and are read by now, 0 to 1."""

    def lists(self, user_id: str) -> tuple[ShownList, ...]:
        """Return the newest lists of a user, newest first; () = none."""

    def refreshes(self, user_id: str) -> tuple[Refresh, ...]:
        """Return the versions of a user's knowledge, newest first; () = none."""

    def state(self, user_id: str) -> UserFacts | None:
        """Return a user's state, None if streams has written none."""

    def user(self, user_id: str) -> UserPage:
        """Return everything of a user; asks the store."""

    def item(self, item_id: str) -> ItemPage:
        """Return everything of an item; asks the store."""

    def search(self, text: str) -> Matches:
        """Return the user and the items that a text names: by id, items by words of their title too."""

    def overview(self) -> Overview:
        """Return the whole at a glance; put together at most once a second."""

    def dead_letters(self) -> Letters:
        """Return the dead letters by kind of reason."""

    def dead_letter(self, number: int) -> Letter | None:
        """Return one letter with all its bytes, None if it is not held."""

    def models(self) -> Models:
        """Return versions, adapters and deployments."""

    def experiments(self) -> Experiments:
        """Return the running experiment; figures are computed in the background and kept for a minute."""

    def settings(self) -> tuple[EffectiveSetting, ...]:
        """Return every setting with its value and source; secrets are masked."""
