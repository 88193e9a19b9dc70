"""Views that show fixed facts, for tests of the server and of pages: no broker, no store."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from workers.views.facts import (
    DriftStatistic,
    ItemPage,
    Letter,
    NamedItem,
    PastEvent,
    Refresh,
    ShownList,
    Taker,
    TrustState,
    UserFacts,
    UserPage,
)
from workers.views.summary import (
    EffectiveSetting,
    Experiments,
    Letters,
    Matches,
    Models,
    Overview,
    Spread,
)

LIST = ShownList(
    items=(NamedItem("i1", "The <b>first</b>", -1.5), NamedItem("i2", "Second", -2.0)),
    reference=(NamedItem("i2", "Second"), NamedItem("i3", "")), source="fused", fallback=None, reason="knowledge",
    lagrange=1.1, kl=0.05, epsilon=0.1, knowledge_version=2, knowledge_age_s=60.0, knowledge_behind=1,
    model_version="v1", event_time=1000.0, count=9, caused_at=1001.0, ranked_at=1002.0, experiment="", arm="",
    read_at=1002.5)
MADE = Refresh(1, "cold_start", 900.0, 5, 901.0, 901.5, 0.0, 903.0, "v1", 2.0, True)
ASKED = Refresh(2, "drift", 1000.0, 9, 1001.0, 1001.5, 0.3)
STATE = UserFacts(
    count=9, duplicates=0, late=1, too_late=0, unknown_items=0,
    history=(PastEvent("i1", "The <b>first</b>", "view", 1000.0, 9),), seen=3,
    drift=DriftStatistic(2.5, 5.0, False, 8, 0.4),
    trust=TrustState(0.8, 1.0, 0.6, 3.0, 0.0, 0, (0.1, -0.2), 2.0), knowledge_version=1, knowledge_count=5,
    knowledge_event_time=900.0, model_version="v1", pending=2, pending_reason="drift", event_time=1000.0,
    updated_at=1001.0)
ITEM = ItemPage("i1", True, "The <b>first</b>", {"brand": "<i>x</i>"}, "nice", "v1", (NamedItem("i2", "Second", 0.4),),
                (NamedItem("i3", "", 0.9),), (Taker("u1", 1000.0),))
NOBODY = Spread(0, None, None, None)


@dataclass
class FixedViews:
    """Every user and item is in the dictionaries, or not known."""

    users: dict[str, UserFacts] = field(default_factory=lambda: {"u1": STATE})
    items: dict[str, ItemPage] = field(default_factory=lambda: {"i1": ITEM})
    shown: dict[str, tuple[ShownList, ...]] = field(default_factory=lambda: {"u1": (LIST,)})
    made: dict[str, tuple[Refresh, ...]] = field(default_factory=lambda: {"u1": (ASKED, MADE)})
    letters: Letters = field(default_factory=lambda: Letters(0, 0, ()))
    caught_up: bool = True
    share_read: float = 1.0

    def lists(self, user_id: str) -> tuple[ShownList, ...]:
        return self.shown.get(user_id, ())

    def refreshes(self, user_id: str) -> tuple[Refresh, ...]:
        return self.made.get(user_id, ())

    def state(self, user_id: str) -> UserFacts | None:
        return self.users.get(user_id)

    def user(self, user_id: str) -> UserPage:
        return UserPage(user_id, self.state(user_id), self.lists(user_id), self.refreshes(user_id), None, "", (), ())

    def item(self, item_id: str) -> ItemPage:
        return self.items.get(item_id) or replace(ITEM, item_id=item_id, known=False, title="", attributes={})

    def search(self, text: str) -> Matches:
        words = text.lower().split()
        return Matches((text,) if text in self.users else (), tuple(
            NamedItem(one.item_id, one.title) for one in self.items.values()
            if one.item_id == text or all(word in one.title.lower() for word in words)))

    def overview(self) -> Overview:
        return Overview(1000.0, self.caught_up, 10, 0, len(self.users), 1.0, 1.0, (), (), NOBODY, NOBODY, None, None,
                        None, None, "v1", ())

    def dead_letters(self) -> Letters:
        return self.letters

    def dead_letter(self, number: int) -> Letter | None:
        return next((one for group in self.letters.groups for one in group.newest if one.number == number), None)

    def models(self) -> Models:
        return Models("v1", (), ())

    def experiments(self) -> Experiments:
        return Experiments("", 0.1, None, "", None)

    def settings(self) -> tuple[EffectiveSetting, ...]:
        return ()
