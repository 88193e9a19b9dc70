"""How much of everything a number of users needs: arithmetic on measured constants, without a machine."""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import ceil
from pathlib import Path

RESULTS = Path(__file__).parents[1] / "results"
HEADROOM = 2.0  # instances work at half of what they can: one may fail, and a backlog must shrink
REPLICAS = {"kafka": 3, "qdrant": 2}
# A partition moves to another instance as a whole and is read from the changelog there.
USERS_PER_PARTITION = 500_000
USERS_PER_SHARD = 10_000_000  # of Qdrant: 20 GB
RETENTION_DAYS = {"events": 7, "lists": 7}
DAY_S = 86_400


@dataclass(frozen=True, slots=True)
class Constants:
    """What was measured. Rates are of one instance with one core.

    Args:
        events_per_s: events through streams, with a ranking request for each.
        ranking_s: seconds to rank one user, at `items` items.
        call_s: seconds of the language model per refresh.
        state_bytes: of a user's state.
        point_bytes: of a user's knowledge in the store.
        list_bytes: of a recommendation.
    """

    events_per_s: float
    ranking_s: float
    call_s: float
    state_bytes: float
    point_bytes: float
    list_bytes: float


@dataclass(frozen=True, slots=True)
class Load:
    """What a service expects.

    Args:
        events_per_day: mean per user.
        peak: rate of the busiest hour over the mean.
        calls_per_1000: language model calls per 1,000 events.
    """

    users: int
    events_per_day: float = 10.0
    peak: float = 3.0
    calls_per_1000: float = 32.0

    @property
    def peak_events_per_s(self) -> float:
        """Events a second in the busiest hour."""
        return self.users * self.events_per_day * self.peak / DAY_S


@dataclass(frozen=True, slots=True)
class Need:
    """What to provide. Instances have one core each; sizes are in bytes, replicas included."""

    streams: int
    ranking: int
    knowledge: int
    partitions: int
    states: float
    points: float
    shards: int
    lists: float


def need(load: Load, constants: Constants) -> Need:
    """Return what a load needs."""
    events = load.peak_events_per_s * HEADROOM
    streams = ceil(events / constants.events_per_s)
    calls = events * load.calls_per_1000 / 1000
    ranking = ceil(events * constants.ranking_s + calls * constants.ranking_s)  # a refresh ranks its user again
    partitions = max(4, streams * 2, ranking, ceil(load.users / USERS_PER_PARTITION))
    return Need(
        streams=streams, ranking=ranking, knowledge=ceil(calls * constants.call_s),
        partitions=1 << (partitions - 1).bit_length(),  # a power of two: instances can be doubled evenly
        states=load.users * constants.state_bytes * REPLICAS["kafka"],
        points=load.users * constants.point_bytes * REPLICAS["qdrant"],
        shards=ceil(load.users / USERS_PER_SHARD),
        lists=load.users * constants.list_bytes * REPLICAS["kafka"])


def recorded(live_extra_s: float, ranking_s: float, list_bytes: float) -> Constants:
    """Return the constants, with those of other benchmarks from their results.

    Args:
        live_extra_s: what an event with a ranking request takes longer in streams than one of history.
    """
    ingest = json.loads((RESULTS / "ingest.json").read_text())["systems"]["freshet"]
    rows = json.loads((RESULTS / "frontier.json").read_text())
    always = next(row for row in rows if row["dataset"] == "movielens-100k" and row["policy"] == "always")
    return Constants(
        events_per_s=1 / (1 / ingest["events_per_s"] + live_extra_s), ranking_s=ranking_s,
        call_s=always["llm_seconds"] / always["calls"], state_bytes=always["state_bytes_per_user"],
        point_bytes=always["store_bytes_per_user"], list_bytes=list_bytes)
