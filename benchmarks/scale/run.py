"""What one instance does in a second, and from it what 1,000, a million and a hundred million users need.

    python -m benchmarks.scale.run [--quick]

Measures what no other benchmark does: streams' extra work for an event that is ranked, and the time to rank a user by
size of the catalogue. Takes the rest from the results of `bench-ingest` and `bench-frontier`. A full run writes
benchmarks/results/scale.json and the tables of docs/scale.md.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from benchmarks.pages import fill
from benchmarks.scale.sizing import Constants, Load, need, recorded
from models.data.sequences import Sequences
from models.evidence.ease import Ease
from models.scorers.backbone import Backbone
from models.scorers.fusion import FusedScorer
from models.serving.ranking_model import RankingModel
from models.serving.requests import RankBatch, UserKnowledge
from models.trust.region import trust_region
from schemas.calibration import Calibration
from schemas.messages import Recommendation, ScoredItem
from schemas.settings import Settings
from streams.decisions.planner import Planner, States
from streams.profile.catalogue import ItemVectors
from streams.profile.fold import Event
from streams.service.outbox import wire
from workers.training.revision import revision

ROOT = Path(__file__).parents[2]
CATALOGUES = (1_000, 12_000, 100_000)
USUAL = 12_000
DIM, HISTORY, BATCH, TOP = 64, 50, 64, 10
USERS = (1_000, 1_000_000, 100_000_000)
CALIBRATION = Calibration(
    min_history=5, ttl_s=1e9, drift_mean=0.5, drift_sd=0.2, drift_prior=10, drift_slack=0.5, drift_threshold=5,
    drift_false_alarm_every=500, margin_bound=0.1, epsilon=0.1)


def events_seconds(*, backfill: bool, rounds: int) -> float:
    """Return the seconds that decisions, and messages if not `backfill`, take per event."""
    rng = np.random.default_rng(0)
    items = 2_000
    vectors = rng.normal(size=(items, DIM)).astype(np.float32)
    planner = Planner(ItemVectors([f"i{n}" for n in range(items)], vectors), CALIBRATION, Settings())
    states: States = {}
    best = float("inf")
    for turn in range(rounds + 1):
        drawn = zip(rng.integers(500, size=2000).tolist(), rng.integers(items, size=2000).tolist(), strict=True)
        batch = [Event(f"u{user}", f"i{item}", 1e9 + turn * 1000 + n, "view", f"e{turn}-{n}", turn * 2000 + n, 0.0,
                       backfill) for n, (user, item) in enumerate(drawn)]
        started = time.perf_counter()
        plan = planner.events(states, batch, 1e9)
        for message in (*plan.ranking, *plan.knowledge):
            wire(message)
        if turn:  # the first batch creates the users
            best = min(best, (time.perf_counter() - started) / len(batch))
    return best


def ranking_seconds(items: int, rounds: int) -> float:
    """Return the seconds to rank a catalogue for one of `BATCH` users, all with knowledge, on one core."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    shape = {"n_items": items, "dim": DIM, "layers": 2, "heads": 2, "max_len": HISTORY, "dropout": 0.1}
    rng = np.random.default_rng(0)
    fused = FusedScorer(torch.randn(items, 64), torch.zeros(items, dtype=torch.bool), **shape)
    past = Sequences(rng.integers(0, min(items, 2000), 20_000), np.arange(20_000), np.arange(0, 20_001, 20))
    model = RankingModel(Backbone(**shape), fused, {"backbone": shape}, Ease.fit(past, items))
    batch = RankBatch(
        histories=[rng.integers(0, items, HISTORY).tolist() for _ in range(BATCH)], seen=[[]] * BATCH,
        knowledge=[UserKnowledge(rng.normal(size=(5, DIM)).astype(np.float32))] * BATCH,
        judged=[[(HISTORY - 1, 0)]] * BATCH, top=TOP, current_evidence=True)
    best = float("inf")
    for _ in range(rounds):
        started = time.perf_counter()
        with torch.no_grad():
            rank = model.rank(batch)
            logp, _, _ = trust_region(rank.ref_logp, rank.fused_logp, torch.full((BATCH,), 0.1))
            logp.topk(TOP, dim=1)
            rank.ref_logp.topk(TOP, dim=1)
        best = min(best, (time.perf_counter() - started) / BATCH)
    return best


def list_bytes() -> float:
    """Return the bytes of a recommendation of ten items, with the reference's ten."""
    names = [f"item-{n:08d}" for n in range(TOP)]
    return float(len(wire(Recommendation(
        user_id="user-00000001", items=[ScoredItem(item_id=name, score=-1.2345678901234567) for name in names],
        reference=names, source="fused", reason="event", lagrange=1.2345678901234567, kl=0.12345678901234567,
        epsilon=0.1, knowledge_version=12, knowledge_age_s=86400.5, knowledge_behind=5,
        model_version="20261128-000000-000000", event_time=1.7e9 + 0.123456, count=50, caused_at=1.7e9 + 0.123456,
        requested_at=1.7e9 + 0.123456, ranked_at=1.7e9 + 0.123456))))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    parser.add_argument("--quick", action="store_true", help="small catalogues, once, nothing written")
    quick = parser.parse_args().quick
    rounds = 1 if quick else 7
    extra = max(0.0, events_seconds(backfill=False, rounds=rounds) - events_seconds(backfill=True, rounds=rounds))
    ranking = {items: ranking_seconds(items, rounds) for items in (CATALOGUES[:1] if quick else CATALOGUES)}
    constants = recorded(extra, ranking.get(USUAL, ranking[CATALOGUES[0]]), list_bytes())
    tables = {"constants": measured(constants, ranking), "sizes": sizes(constants)}
    print("\n\n".join(tables.values()))
    if not quick:
        (ROOT / "benchmarks" / "results" / "scale.json").write_text(json.dumps(
            {"constants": asdict(constants), "ranking_s": ranking, "revision": revision()}, indent=1) + "\n")
        for name, table in tables.items():
            fill(ROOT / "docs" / "scale.md", name, table)


def measured(constants: Constants, ranking: dict[int, float]) -> str:
    """Return the table of what was measured."""
    by_size = ", ".join(f"{items:,} items {1000 * seconds:.2g} ms" for items, seconds in ranking.items())
    return "\n".join([
        "| what | figure | from |", "|---|--:|---|",
        f"| events through streams, each with a ranking request | {constants.events_per_s:,.0f}/s "
        "| `make bench-ingest`, less what a request takes (`make bench-scale`) |",
        f"| ranking one user of 64 at a time, with and without knowledge | {by_size} | `make bench-scale` |",
        f"| a refresh, Gemma 3 270M | {1000 * constants.call_s:.0f} ms | `make bench-frontier`, MovieLens |",
        f"| a user's state | {constants.state_bytes:,.0f} bytes | `make bench-frontier`, MovieLens |",
        f"| a user's knowledge in Qdrant | {constants.point_bytes:,.0f} bytes | `make bench-frontier`, MovieLens |",
        f"| a recommendation of ten items | {constants.list_bytes:,.0f} bytes | `make bench-scale` |"])


def sizes(constants: Constants) -> str:
    """Return the table of needs."""
    lines = ["| | " + " | ".join(f"{users:,} users" for users in USERS) + " |", "|---|" + "--:|" * len(USERS)]
    loads = [Load(users) for users in USERS]
    needs = [need(load, constants) for load in loads]
    rows = {
        "events/s, mean": [f"{load.peak_events_per_s / load.peak:,.2g}" if load.peak_events_per_s < 10 else
                           f"{load.peak_events_per_s / load.peak:,.0f}" for load in loads],
        "events/s, busiest hour": [f"{load.peak_events_per_s:,.2g}" if load.peak_events_per_s < 10 else
                                   f"{load.peak_events_per_s:,.0f}" for load in loads],
        "streams, instances": [f"{one.streams:,}" for one in needs],
        "ranking, instances": [f"{one.ranking:,}" for one in needs],
        "knowledge, instances": [f"{one.knowledge:,}" for one in needs],
        "`FRESHET_KAFKA_PARTITIONS`": [f"{one.partitions:,}" for one in needs],
        "states in Kafka": [size(one.states) for one in needs],
        "newest lists in Kafka": [size(one.lists) for one in needs],
        "knowledge in Qdrant": [size(one.points) for one in needs],
        "Qdrant shards": [f"{one.shards:,}" for one in needs]}
    return "\n".join([*lines, *(f"| {name} | " + " | ".join(cells) + " |" for name, cells in rows.items())])


def size(count: float) -> str:
    """Return bytes in a unit that fits."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= scale:
            return f"{count / scale:,.2g} {unit}" if count < 100 * scale else f"{count / scale:,.0f} {unit}"
    return f"{count / 1e3:,.0f} kB"


if __name__ == "__main__":
    main()
