"""Build the messages about a user that streams sends to other roles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf

from schemas.messages import (
    AlignmentSample,
    JudgedEvent,
    KnowledgeRequest,
    Margin,
    RankingReason,
    RankingRequest,
    UserSeen,
)
from schemas.settings.meanings import Meanings, Repeats
from streams.profile.fold import Touched
from streams.profile.state import Pending, UserState

_NEVER = Repeats()
_NO_WEIGHTS: Mapping[str, float] = {}


def ranking_request(
    user: str, state: UserState, reason: RankingReason, caused_at: float, now: float, judged: Sequence[JudgedEvent],
    repeats: Repeats = _NEVER, meanings: Meanings | None = None, weights: Mapping[str, float] = _NO_WEIGHTS,
    seen: UserSeen | None = None,
) -> RankingRequest:
    """Return a request for new recommendations and for the scores of `judged`.

    Args:
        repeats: when items may be recommended again.
        meanings: what events mean, read where `repeats` lets something return.
        weights: what new events add to the popularity of items, where it is not 1 each.
        seen: the message that asks, if one does; its labels come before those kept.
    """
    return RankingRequest(
        user_id=user, reason=reason, history=list(state.items), seen=masked(state, repeats, meanings),
        repeat=not repeats.never, judged=list(judged), weights=dict(weights),
        count=state.count, knowledge_version=state.knowledge_version,
        knowledge_model_version=state.model_version, trust=state.trust, event_time=state.event_time,
        caused_at=caused_at, requested_at=now,
        allow=state.allow if seen is None or seen.allow is None else seen.allow,
        deny=state.deny if seen is None or seen.deny is None else seen.deny)


def masked(state: UserState, repeats: Repeats = _NEVER, meanings: Meanings | None = None) -> list[str]:
    """Return the items not to recommend, at the time of the user's newest event, each once.

    Where nothing is recommended again, the items of the history are left out: they are in every request. An item the
    user is against stays out for ever; one that was taken returns as `repeats.taken` says, whatever else the user did
    with it; the others as `repeats.interest` says.
    """
    if repeats.never:
        if not (state.taken or state.against):
            return list(state.seen)
        return list(dict.fromkeys((*state.seen, *state.taken, *state.against)))
    meanings = Meanings() if meanings is None else meanings
    # An item that left the history under another setting has no time: it is as old as can be.
    interest: dict[str, float] = {item: -inf if time is None else time for item, time in state.seen.items()}
    taken, against = dict(state.taken), dict.fromkeys(state.against)
    for item, time, kind in zip(state.items, state.times, state.types, strict=True):
        meaning = meanings[kind]
        if meaning is not None and meaning.effect == "against":  # an earlier release took it for interest
            against[item] = None
        elif meaning is not None and meaning.effect == "taken":
            taken[item] = max(time, taken.get(item, time))
        else:
            interest[item] = max(time, interest.get(item, time))
    now = max(state.event_time, max(taken.values(), default=0.0))
    out = against
    for item, time in taken.items():
        if now - time < repeats.taken:
            out[item] = None
    for item, time in interest.items():
        if item not in taken and now - time < repeats.interest:
            out[item] = None
    return list(out)


def judged_events(state: UserState, note: Touched) -> list[JudgedEvent]:
    """Return the events of a batch that should be scored, oldest first.

    Late events are left out, because knowledge may include events after them. So are events that the knowledge has
    seen and events that were judged before.
    """
    done = max(state.knowledge_count, state.judged_count)
    positions = {count: at for at, count in enumerate(state.counts)}
    judged: dict[int, JudgedEvent] = {}
    for event in (*note.replayed, *note.applied):
        count = state.event_ids.get(event.event_id)
        if count is None or count <= done or event.backfill:
            continue
        at = positions.get(count)
        if at is not None and all(later > count for later in state.counts[at + 1:]):
            judged[count] = JudgedEvent(
                event_id=event.event_id, item_id=event.item_id, position=at, count=count)
    return [judged[count] for count in sorted(judged)]


def knowledge_request(user: str, state: UserState, pending: Pending, *, as_asked: bool = False) -> KnowledgeRequest:
    """Return the request for the pending knowledge.

    Args:
        as_asked: send the history as it was when the request was decided, not the current one.
    """
    items, count, event_time = list(state.items), state.count, state.event_time
    if as_asked:
        items = [item for item, number in zip(items, state.counts, strict=True) if number <= pending.count]
        count, event_time = pending.count, pending.event_time
    return KnowledgeRequest(
        user_id=user, version=pending.version, reason=pending.reason, history=items, count=count,
        event_id=pending.event_id, event_time=event_time, caused_at=pending.caused_at,
        requested_at=pending.requested_at, priority=pending.priority)


def alignment_samples(user: str, state: UserState, margins: Sequence[Margin]) -> list[AlignmentSample]:
    """Return the events on which knowledge did harm, each once, with the history before the event."""
    wealth = max(state.log_wealth, default=0.0)
    samples = []
    # A judgement that repeats an event many times would otherwise cause as many copies of the history.
    for margin in {margin.count: margin for margin in reversed(margins)}.values():
        if margin.value < 0 and margin.count in state.counts:
            at = state.counts.index(margin.count)
            samples.append(AlignmentSample(
                user_id=user, history=state.items[:at], item_id=margin.item_id, margin=margin.value,
                log_wealth=wealth, knowledge_version=margin.knowledge_version, model_version=state.model_version,
                event_time=state.times[at]))
    return samples[::-1]
