"""What happened lately, over all users: per minute, as quantiles, who took an item. Bounded; pure, times passed in."""

from __future__ import annotations

import math
from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from workers.views.facts import Taker
from workers.views.reading.records import KeptList, KeptUpdate
from workers.views.summary import LiveQuality, Minute, Spread

_MINUTE = 60.0
MINUTES = 60
VALUES = 2000  # of each quantile: the newest
# 10,000 items × 20 takers × 120 bytes = 24 MB at most. Items beyond, taken longest ago, have none.
ITEMS, TAKERS = 10_000, 20
USERS = 10  # whose state changed last


@dataclass(slots=True)
class _Counts:
    events: int = 0
    refreshes: Counter[str] = field(default_factory=Counter)
    lists: Counter[str] = field(default_factory=Counter)
    changed: int = 0
    letters: int = 0
    contradictions: int = 0


class Recent:
    """Aggregates by the broker's clock, so that a rebuilt view shows the same hour as one that ran."""

    def __init__(self) -> None:
        self._minutes: dict[int, _Counts] = {}
        self._knowledge: deque[float] = deque(maxlen=VALUES)
        self._lists: deque[float] = deque(maxlen=VALUES)
        self._margins: deque[float] = deque(maxlen=VALUES)
        self._predicted: deque[tuple[str, float, float]] = deque(maxlen=VALUES)
        self._takers: OrderedDict[str, dict[str, float]] = OrderedDict()
        self._users: OrderedDict[str, float] = OrderedDict()

    def events(self, at: float, number: int) -> None:
        """Count events that came in."""
        if (counts := self._minute(at)) is not None:
            counts.events += number

    def refreshed(self, at: float, made: KeptUpdate) -> None:
        """Count knowledge that was made."""
        if (counts := self._minute(at)) is not None:
            counts.refreshes[made.reason] += 1
        if made.written:
            self._knowledge.append(made.generated_at - made.caused_at)

    def shown(self, at: float, one: KeptList) -> None:
        """Count a list."""
        if (counts := self._minute(at)) is not None:
            counts.lists[one.source] += 1
            counts.changed += one.source != "reference" and one.changed
        self._lists.append(one.ranked_at - one.caused_at)

    def judged(self, values: Iterable[float]) -> None:
        """Note margins, nats."""
        self._margins.extend(values)

    def predicted(self, user: str, served: float, reference: float) -> None:
        """Note NDCG@10 of an event by what was shown before it, and by behaviour alone."""
        self._predicted.append((user, served, reference))

    def contradicted(self, at: float) -> None:
        """Count a refresh that a contradiction asked for."""
        if (counts := self._minute(at)) is not None:
            counts.contradictions += 1

    def buried(self, at: float) -> None:
        """Count a dead letter."""
        if (counts := self._minute(at)) is not None:
            counts.letters += 1

    def took(self, user: str, items: Sequence[str], times: Sequence[float]) -> None:
        """Note that a user took items at these event times."""
        for item, at in zip(items, times, strict=True):
            takers = self._takers.get(item)
            if takers is None:
                takers = self._takers[item] = {}
                if len(self._takers) > ITEMS:
                    self._takers.popitem(last=False)
            elif takers.get(user, float("-inf")) >= at:
                continue
            self._takers.move_to_end(item)
            takers.pop(user, None)
            takers[user] = at
            if len(takers) > TAKERS:
                del takers[min(takers, key=takers.__getitem__)]

    def changed(self, user: str, at: float) -> None:
        """Note that a user's state changed."""
        self._users.pop(user, None)
        self._users[user] = at
        if len(self._users) > USERS:
            self._users.popitem(last=False)

    @property
    def users(self) -> tuple[Taker, ...]:
        """Users whose state changed last, newest first, with when."""
        return tuple(Taker(user, at) for user, at in reversed(list(self._users.items())))

    def forget(self, user: str) -> None:
        """Forget a user: erased from the topics, erased here."""
        self._users.pop(user, None)
        for takers in self._takers.values():
            takers.pop(user, None)

    def takers(self, item: str) -> tuple[Taker, ...]:
        """Return who took an item, newest first."""
        found = list(self._takers.get(item, {}).items())
        return tuple(Taker(user, at) for user, at in sorted(found, key=lambda one: -one[1]))

    def minutes(self, now: float) -> tuple[Minute, ...]:
        """Return the last hour, oldest first, minutes without anything included."""
        last = int(now // _MINUTE)
        out = []
        for number in range(last - MINUTES + 1, last + 1):
            one = self._minutes.get(number) or _Counts()
            out.append(Minute(number * _MINUTE, one.events, dict(one.refreshes), dict(one.lists), one.changed,
                              one.letters, one.contradictions))
        return tuple(out)

    @property
    def knowledge_freshness(self) -> Spread:
        """Seconds from cause to knowledge."""
        return spread(list(self._knowledge))

    @property
    def list_freshness(self) -> Spread:
        """Seconds from cause to list."""
        return spread(list(self._lists))

    @property
    def mean_margin(self) -> float | None:
        """Mean of the newest margins, nats; None = there are none."""
        values = list(self._margins)
        return sum(values) / len(values) if values else None

    @property
    def quality(self) -> LiveQuality | None:
        """Quality of the newest events that followed a list."""
        return quality(list(self._predicted))

    def _minute(self, at: float) -> _Counts | None:
        """Return the counts of the minute that `at` lies in; None = it is older than what is kept."""
        number = int(at // _MINUTE)
        counts = self._minutes.get(number)
        if counts is None:
            if self._minutes and number <= max(self._minutes) - MINUTES:
                return None
            counts = self._minutes[number] = _Counts()
            for old in [one for one in self._minutes if one <= max(self._minutes) - MINUTES]:
                del self._minutes[old]
        return counts


def quality(rows: Sequence[tuple[str, float, float]]) -> LiveQuality | None:
    """Return the quality of events: (user, NDCG@10 of what was shown, of behaviour alone); None without events.

    The interval is the normal one with users as clusters: events of one user depend on each other. A bootstrap, as the
    report has, would take 0.2 s each time.
    """
    if not rows:
        return None
    n = len(rows)
    served, reference = sum(row[1] for row in rows) / n, sum(row[2] for row in rows) / n
    off: dict[str, float] = {}
    for user, one, other in rows:
        off[user] = off.get(user, 0.0) + (one - other) - (served - reference)
    half = 1.96 * math.sqrt(sum(value * value for value in off.values())) / n
    return LiveQuality(n, served, reference, served - reference - half, served - reference + half)


def spread(values: list[float]) -> Spread:
    """Return the quantiles of values, by the nearest rank."""
    values.sort()

    def at(share: float) -> float | None:
        return values[min(len(values) - 1, int(share * len(values)))] if values else None

    return Spread(len(values), at(0.5), at(0.9), at(0.99))
