"""What the views return of a user and an item: frozen dataclasses of plain data, ready to be shown or sent.

Times named `*_at` are wall-clock seconds since 1970, `event_time` comes from the producer's clock. Ids and titles are
as producers sent them: any text, also hostile. None = not known.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class NamedItem:
    """An item with its title; "" = no title is known.

    Args:
        score: log-probability in a list, similarity among neighbours.
        written: what a language model wrote of it.
    """

    item_id: str
    title: str = ""
    score: float | None = None
    written: str = ""


@dataclass(frozen=True, slots=True)
class ShownList:
    """A list that ranking made for a user; the fields are those of `schemas.messages.Recommendation`.

    Args:
        items: what was shown, best first.
        reference: what behaviour alone would have shown, best first.
        read_at: when the broker took the message.
    """

    items: tuple[NamedItem, ...]
    reference: tuple[NamedItem, ...]
    source: str
    fallback: str | None
    reason: str
    lagrange: float | None
    kl: float
    epsilon: float
    knowledge_version: int
    knowledge_age_s: float | None
    knowledge_behind: int | None
    model_version: str
    event_time: float
    count: int
    caused_at: float
    ranked_at: float
    experiment: str
    arm: str
    read_at: float


@dataclass(frozen=True, slots=True)
class Refresh:
    """One version of a user's knowledge, asked for or made.

    Args:
        reason: why: cold_start, drift, contradiction or stale.
        requested_at, priority: None = the request is not in the topic any more.
        generated_at, model_version, freshness_s: None = not made yet; the last is generated − caused by the broker's
            clock, seconds.
        written: False = the store had a newer version already.
        gained, lost: items that entered and left the list when it first used this version; None = no such list is
            held.
        seconds, tokens: what the language model spent on it; None = not made, or announced again.
    """

    version: int
    reason: str
    event_time: float
    count: int
    caused_at: float
    requested_at: float | None = None
    priority: float | None = None
    generated_at: float | None = None
    model_version: str | None = None
    freshness_s: float | None = None
    written: bool | None = None
    gained: tuple[NamedItem, ...] | None = None
    lost: tuple[NamedItem, ...] | None = None
    seconds: float | None = None
    tokens: float | None = None


@dataclass(frozen=True, slots=True)
class StoredKnowledge:
    """The knowledge that the store holds of a user.

    Args:
        shape: (K, d) of its vectors.
        codes: codeword of each soft instruction; () = not known.
        evidence: items that its evidence speaks for, the strongest first; scores are weights.
        texts: what was written of the user; () for systems that make vectors only.
    """

    version: int
    model_version: str
    reason: str
    generated_at: float
    event_time: float
    count: int
    shape: tuple[int, int]
    codes: tuple[int, ...] = ()
    evidence: tuple[NamedItem, ...] = ()
    texts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PastEvent:
    """An event in a user's history; `count` is its number in order of arrival."""

    item_id: str
    title: str
    event_type: str
    event_time: float
    count: int


@dataclass(frozen=True, slots=True)
class JudgedMargin:
    """log p with knowledge − log p without, nats, of an event that followed."""

    event_id: str
    item_id: str
    title: str
    count: int
    value: float
    knowledge_version: int
    judged_at: float


@dataclass(frozen=True, slots=True)
class DriftStatistic:
    """The CUSUM of a user's drift.

    Args:
        value, threshold: a refresh for drift is due where the first reaches the second; threshold None = no model.
        events: number of events in the user's own mean.
        mean: of d = 1 − cos(short interest, anchor).
    """

    value: float
    threshold: float | None
    drifted: bool
    events: int
    mean: float


@dataclass(frozen=True, slots=True)
class TrustState:
    """How far a user's knowledge is trusted, and the bets behind it.

    Args:
        trust, standing: shares of the full trust radius: now, and what new knowledge starts with.
        log_wealth, log_limit: of the bet on harm, of the mixture; at the limit log 1/α knowledge is contradicted.
        help_log_wealth: of the bet on help.
        contradicted_at: count of the event that contradicted; 0 = it is not contradicted.
        margins: the newest with this knowledge, in units of the bound B, oldest first.
        bound: B, nats.
    """

    trust: float
    standing: float
    log_wealth: float
    log_limit: float
    help_log_wealth: float
    contradicted_at: int
    margins: tuple[float, ...]
    bound: float | None


@dataclass(frozen=True, slots=True)
class StateStep:
    """A user's statistics after their event number `count`: drift, bet on harm (log-wealth) and trust."""

    count: int
    drift: float
    log_wealth: float
    trust: float


@dataclass(frozen=True, slots=True)
class UserFacts:
    """A user's state, as streams last wrote it.

    Args:
        count: events applied.
        history: newest first, bounded by `state.history`.
        seen: number of older items not to be recommended again.
        pending: version that was asked for and has not come; 0 = none.
        updated_at: when the broker took it.
    """

    count: int
    duplicates: int
    late: int
    too_late: int
    unknown_items: int
    history: tuple[PastEvent, ...]
    seen: int
    drift: DriftStatistic
    trust: TrustState
    knowledge_version: int
    knowledge_count: int
    knowledge_event_time: float
    model_version: str
    pending: int
    pending_reason: str
    event_time: float
    updated_at: float


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter.

    Args:
        number: its offset in `dead-letters`: what `Views.dead_letter` takes.
        topic, partition, offset: of the record that could not be used; −1 = it was not written.
        value: the record's bytes; in lists the first 2,000 of them.
        key: None = the record has none.
    """

    number: int
    topic: str
    partition: int
    offset: int
    reason: str
    role: str
    failed_at: float
    value: bytes
    key: bytes | None
    headers: tuple[tuple[str, bytes | None], ...] = ()


@dataclass(frozen=True, slots=True)
class UserPage:
    """Everything of one user.

    Args:
        state: None = streams has not written one: no event came, or only dead letters.
        lists: newest first: what is shown now, and before.
        refreshes: newest version first, made and asked for.
        stored: what the store holds now; None = nothing.
        store_problem: why the store could not be asked, "" = it was, or none is set.
        margins: newest first.
        letters: dead letters of this user, newest first.
        steps: how the statistics went, oldest first, bounded.
    """

    user_id: str
    state: UserFacts | None
    lists: tuple[ShownList, ...]
    refreshes: tuple[Refresh, ...]
    stored: StoredKnowledge | None
    store_problem: str
    margins: tuple[JudgedMargin, ...]
    letters: tuple[Letter, ...]
    steps: tuple[StateStep, ...] = ()


@dataclass(frozen=True, slots=True)
class Taker:
    """A user who took an item; the newest time."""

    user_id: str
    event_time: float


@dataclass(frozen=True, slots=True)
class ItemPage:
    """Everything of one item.

    Args:
        known: False = neither the model version nor an event names it.
        attributes: as the catalogue has them.
        written: what a language model wrote of it; "" = nothing.
        by_behaviour: items that people take with it; scores are weights of the closed form.
        by_text: items with similar texts; scores are cosines.
        takers: newest first, bounded; of the items taken most recently only.
        problem: why neighbours by text are not known, "" = they are, or there are none.
    """

    item_id: str
    known: bool
    title: str
    attributes: dict[str, Any]
    written: str
    model_version: str
    by_behaviour: tuple[NamedItem, ...]
    by_text: tuple[NamedItem, ...]
    takers: tuple[Taker, ...]
    problem: str = ""
