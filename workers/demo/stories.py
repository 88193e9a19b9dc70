"""Three users' stories: who drifted, who was contradicted, who was new. Chosen and told by pure functions.

The story of a new user is about the one with the shortest history; the others are about the one whose list the new
knowledge changed most. What the user did next does not choose, and is told as it was.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import log

import numpy as np

from schemas.messages import RefreshReason
from streams.detection.trust import mixture
from streams.profile.state import UserState
from workers.demo.diary import Turn

KINDS: tuple[RefreshReason, ...] = ("drift", "contradiction", "cold_start")
RECENT, NEXT, TAGS = 6, 5, 5  # items before, events after, and words that are told
SOON = 12  # items of a history whose words are counted: as many as the language model reads by default


@dataclass(frozen=True, slots=True)
class Pulse:
    """A user's statistics after an event: the drift's CUSUM, and the wealth of the bet against the knowledge."""

    count: int
    cusum: float
    wealth: float


@dataclass(frozen=True, slots=True)
class ListRow:
    """A place of the lists: item ids, None where a list is shorter."""

    before: str | None
    after: str | None
    reference: str | None
    entered: bool
    by_knowledge: bool
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Next:
    """An item that the user took afterwards, with its place on each list; 0 = not among its items."""

    item: str
    after: int
    before: int
    reference: int


@dataclass(frozen=True, slots=True)
class UserStory:
    """A user's story, all but the titles.

    Args:
        among: number of refreshes of this kind that led to a list.
        recent: the newest items when knowledge was asked for, oldest first.
        more, less: words that are more, or less, frequent in the history of the new knowledge than in that before.
        pulses: the statistic by event since the knowledge before, with its threshold; () = not recorded.
        threshold: 0 = there is none.
    """

    kind: RefreshReason
    turn: Turn
    among: int
    recent: tuple[str, ...]
    more: tuple[str, ...]
    less: tuple[str, ...]
    rows: tuple[ListRow, ...]
    later: tuple[Next, ...]
    pulses: tuple[tuple[int, float], ...] = field(default=())
    threshold: float = 0.0


def themes(words: Sequence[str], most: int) -> str:
    """Return words for a headline, without people: "war and romance"."""
    *first, last = [word for word in words if not word.startswith(("with ", "by "))][:most] or [""]
    return f"{', '.join(first)} and {last}" if first else last


def changed(turn: Turn) -> tuple[int, int]:
    """Return how many items entered the list that behaviour alone would not show, and how many entered at all."""
    entered = set(turn.after.items) - set(turn.before.items if turn.before else ())
    return len(entered - set(turn.after.reference)), len(entered)


def chosen(turns: Sequence[Turn], kind: RefreshReason) -> tuple[Turn | None, int]:
    """Return the turn that the story of a kind is about, None if it did not occur; and the number of such turns."""
    found = [turn for turn in turns if turn.asked.reason == kind]

    def weight(turn: Turn) -> tuple[int, int, int, int, str]:
        new = -turn.asked.count if kind == "cold_start" else 0
        return new, *changed(turn), turn.asked.count, turn.user

    return max(found, key=weight, default=None), len(found)


def pulses(states: Iterable[UserState]) -> list[Pulse]:
    """Return a user's statistics by their states, in order of events; of several states with a count the last."""
    found = {state.count: Pulse(
        state.count, state.cusum, float(mixture(np.array(state.log_wealth))) if state.log_wealth else 0.0)
        for state in states}
    return [found[count] for count in sorted(found)]


def told(
    turn: Turn, among: int, taken: Sequence[str], words: Callable[[str], Sequence[str]], beats: Sequence[Pulse] = (),
    limits: Mapping[str, float] | None = None, usual: Mapping[str, float] | None = None,
) -> UserStory:
    """Tell a turn.

    Args:
        taken: all items of the user in order, those after the turn too.
        words: returns what is written of an item, as words.
        beats: the user's statistics; () = not recorded.
        limits: thresholds of the statistics: "drift" of the CUSUM, "contradiction" of the wealth, as 1/α.
        usual: share of the catalogue's items that have a word; None = not known.
    """
    asked, previous = turn.asked, turn.previous
    newest = asked.history[-SOON:]
    more, less = shift(previous.history[-SOON:] if previous else (), newest, words, usual or {})
    shared = Counter(word for item in newest for word in set(words(item)))
    telling = {word: count / len(newest) - (usual or {}).get(word, 0.0) for word, count in shared.items() if count > 1}
    start = previous.count if previous else 0
    limit = (limits or {}).get(asked.reason, 0.0)
    line: tuple[tuple[int, float], ...] = ()
    if limit and asked.reason in ("drift", "contradiction"):
        drift = asked.reason == "drift"
        limit = limit if drift else log(limit)
        line = tuple((beat.count, beat.cusum if drift else max(0.0, beat.wealth)) for beat in beats
                     if start < beat.count <= asked.count)
    return UserStory(
        asked.reason, turn, among, asked.history[-RECENT:], more, less, rows(turn, words, telling),
        tuple(Next(item, *(_place(item, items) for items in (
            turn.after.items, turn.before.items if turn.before else (), turn.after.reference)))
            for item in taken[turn.after.count:turn.after.count + NEXT]), line, limit)


def rows(turn: Turn, words: Callable[[str], Sequence[str]], telling: Mapping[str, float]) -> tuple[ListRow, ...]:
    """Return the lists side by side; items that entered have the two most `telling` of their words."""
    before, after = turn.before.items if turn.before else (), turn.after.items
    out = []
    for place in range(max(len(before), len(after))):
        item = _at(after, place)
        entered = item is not None and item not in before
        tags = sorted((word for word in words(item or "") if word in telling),
                      key=lambda word: (-telling[word], word))[:2] if entered else []
        out.append(ListRow(_at(before, place), item, _at(turn.after.reference, place), entered,
                       entered and item not in turn.after.reference, tuple(tags)))
    return tuple(out)


def shift(
    before: Sequence[str], after: Sequence[str], words: Callable[[str], Sequence[str]], usual: Mapping[str, float],
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the words whose share of items rose most between two histories, and those whose share fell most.

    A word counts once per item and needs two items of a history. Without a history before, what is more frequent than
    usual rises, and nothing falls.
    """
    shares = []
    for items in (before, after):
        counts = Counter(word for item in items for word in set(words(item)))
        shares.append({word: count / len(items) for word, count in counts.items() if count > 1})
    old, new = shares if before else ({word: usual.get(word, 0.0) for word in shares[1]}, shares[1])
    moved = {word: new.get(word, 0.0) - old.get(word, 0.0) for word in {*old, *new}}
    order = sorted(moved, key=lambda word: (-moved[word], word))
    return (tuple(word for word in order if moved[word] > 0)[:TAGS],
            tuple(word for word in reversed(order) if moved[word] < 0 and before)[:TAGS])


def words_of(texts: Mapping[str, str], titles: Mapping[str, str], written: Mapping[str, str]) -> Callable[
        [str], Sequence[str]]:
    """Return what a reader may call an item: keywords that a language model wrote, else the item's attributes.

    Args:
        texts: catalogue text by item, of which `titles` are the beginning.
        written: "" or absent = nothing was written.
    """
    def words(item: str) -> Sequence[str]:
        if found := written.get(item):
            return [plain_word(word) for word in (found.split(",") if "," in found else found.split())]
        rest = texts.get(item, "").removeprefix(titles.get(item, "")).lstrip(". ")
        return [word.strip().lower() for word in rest.split(",") if word.strip()]

    return words


def plain_word(word: str) -> str:
    """Return a keyword as people write it: `act-hanks` is "with Hanks", `dir-allen` "by Allen", `buddy-movie` "buddy
    movie"."""
    role, _, name = word.strip().partition("-")
    if role in ("act", "dir") and name:
        return f"{'with' if role == 'act' else 'by'} {name.replace('-', ' ').title()}"
    return word.strip().replace("-", " ").lower()


def _at(items: Sequence[str], place: int) -> str | None:
    return items[place] if place < len(items) else None


def _place(item: str, items: Sequence[str]) -> int:
    return items.index(item) + 1 if item in items else 0

