"""What the views return of the whole: overview, dead letters, models, experiment, settings.

Times and ids are as in `facts`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from workers.views.facts import Letter, NamedItem, Taker


@dataclass(frozen=True, slots=True)
class LetterGroup:
    """Letters of one topic with one kind of reason.

    Args:
        reason: of the newest of them.
        replayable: how many of those held could be sent again.
        newest: the newest, oldest last, at most 20.
    """

    topic: str
    reason: str
    count: int
    last_at: float
    replayable: int
    newest: tuple[Letter, ...]


@dataclass(frozen=True, slots=True)
class Letters:
    """The dead letters that are held: the newest, bounded in number and bytes.

    Args:
        total: letters in the topic.
        held: of these.
        groups: the most frequent first.
    """

    total: int
    held: int
    groups: tuple[LetterGroup, ...]


@dataclass(frozen=True, slots=True)
class RoleState:
    """How one role is; the fields are those of `workers.supervision.health.RoleHealth`.

    Args:
        state: ok, starting, waiting, stalled, crashed, hung; "elsewhere" = it does not run on this home.
        lag: records that wait in its topic, by the broker; None = not known.
        lag_s: age of the oldest that waits, seconds; None = not known.
        per_s: records it finishes per second, over the last minute; None = not known.
    """

    name: str
    state: str
    reason: str
    lag: int | None
    lag_s: float | None
    per_s: float | None
    dead_letters: int | None
    restarts: int
    error: str


@dataclass(frozen=True, slots=True)
class Minute:
    """What came in one minute, which begins at `at`; numbers are records.

    Args:
        refreshes: knowledge made, by reason.
        lists: recommendations by how they were made: fused, items, reference, popular.
        changed: lists made with knowledge that differ from the reference.
        letters: dead letters.
        contradictions: users whose knowledge the judge contradicted.
    """

    at: float
    events: int = 0
    refreshes: dict[str, int] = field(default_factory=dict)
    lists: dict[str, int] = field(default_factory=dict)
    changed: int = 0
    letters: int = 0
    contradictions: int = 0


@dataclass(frozen=True, slots=True)
class Spread:
    """Quantiles of the newest values; None = there are none."""

    count: int
    p50: float | None
    p90: float | None
    p99: float | None


@dataclass(frozen=True, slots=True)
class LiveQuality:
    """Lists against what users then took: each event is predicted from the last list before it.

    Args:
        n: events: the newest that came while this process read.
        served, reference: NDCG@10 of what was shown, and of behaviour alone.
        low, high: 95% interval of the difference over users.
    """

    n: int
    served: float
    reference: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is wrong, and what to do: one line each; `section` names the runbook's in docs/operations.md."""

    what: str
    cure: str
    section: str = ""


@dataclass(frozen=True, slots=True)
class Overview:
    """The whole at a glance, over the last hour.

    Args:
        at: when it was put together.
        caught_up: False = topics are still being read since the start; figures are of a part.
        read, behind: records that the views have read, and have yet to read.
        users: with a state.
        minutes: oldest first, at most 60, the last one unfinished.
        knowledge_freshness: seconds from the broker's time of the causing event until knowledge was made.
        list_freshness: the same until a list was ranked.
        quality: None = no event followed a list yet.
        margins: mean log p with − without knowledge, nats, of the newest judged events; None = none.
        llm_cost, llm_calls, llm_tokens: of the knowledge roles on this home since their start; None = not known.
        problems: the worst first; empty = nothing is wrong.
        recent: users whose state changed last, newest first, at most 10; `event_time` is when the broker took it.
    """

    at: float
    caught_up: bool
    read: int
    behind: int
    users: int
    events_per_s: float | None
    lists_per_s: float | None
    roles: tuple[RoleState, ...]
    minutes: tuple[Minute, ...]
    knowledge_freshness: Spread
    list_freshness: Spread
    margins: float | None
    llm_cost: float | None
    llm_calls: int | None
    llm_tokens: int | None
    model_version: str
    problems: tuple[Problem, ...]
    recent: tuple[Taker, ...] = ()
    quality: LiveQuality | None = None


@dataclass(frozen=True, slots=True)
class PartWorth:
    """What a part of the model adds on held-out events, with its 95% interval."""

    name: str
    gain: float
    low: float
    high: float
    used: bool


@dataclass(frozen=True, slots=True)
class ModelRow:
    """A fitted version, or an adapter of one.

    Args:
        base: of an adapter: the version it changes; "" = this is a fitted version.
        state: in_use, published, rejected, withdrawn, or "" = fitted and not in use.
        reason: why it is in that state.
        problem: why its card cannot be read, "" = it can.
    """

    version: str
    base: str
    system: str
    created_at: float
    metrics: dict[str, float]
    parts: tuple[PartWorth, ...]
    state: str
    reason: str
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Deployment:
    """A line of the deployment log."""

    at: float
    model_version: str
    by: str
    author: str
    reason: str
    left: str


@dataclass(frozen=True, slots=True)
class Models:
    """Versions, oldest first, and what was put into use, newest first."""

    in_use: str
    rows: tuple[ModelRow, ...]
    deployments: tuple[Deployment, ...]
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Experiments:
    """The running experiment.

    Args:
        name: "" = none is set.
        control: share of users served by behaviour alone.
        figures: as `freshet experiment --json` writes them; None = not computed yet, or there is a problem.
        problem: why there are none, "" = there are, or they are being computed.
        computed_at: None = not yet.
    """

    name: str
    control: float
    figures: dict[str, Any] | None
    problem: str
    computed_at: float | None


@dataclass(frozen=True, slots=True)
class Matches:
    """What a text names.

    Args:
        users: ids equal to it of which a topic holds something.
        items: the item with this id, then those whose title holds all of its words; at most 50.
    """

    users: tuple[str, ...] = ()
    items: tuple[NamedItem, ...] = ()


@dataclass(frozen=True, slots=True)
class EffectiveSetting:
    """A setting as it is in use.

    Args:
        value: as text; of a secret "set" or "".
        source: default, file, variable, secret file, or stack = filled in by `freshet up`.
    """

    variable: str
    section: str
    name: str
    value: str
    default: str
    source: str
    description: str
    secret: bool
