"""How long a ranking takes: single requests and batches, by the size of the catalogue, beside simpler peers.

    python -m benchmarks.rank.run [--items 12101,100000,1000000] [--processes 2] [--quick]

All rows run in turn in one process, several rounds: matrix products alone (the limit), a plain top-10 of one scorer in
torch and in faiss, Freshet with behaviour alone, and Freshet as served: two scorers, two closed forms, trust region,
one event judged, messages built. docs/benchmarks.md has the table of the last full run; faiss comes with `.[bench]`.
"""

from __future__ import annotations

import argparse
import importlib.util
import multiprocessing
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import orjson
import psutil
import torch

from benchmarks.pages import fill
from benchmarks.rank.world import DIM, EPSILON, MadeUpReader, by_user, model, requests
from models.serving.ranking_model import RankingModel
from models.serving.requests import RankBatch, UserKnowledge
from models.trust.lists import lists
from models.trust.region import trust_region
from schemas.messages import RankingRequest, Recommendation
from schemas.settings import RankingSettings
from workers.roles.ranking.ranker import Ranker
from workers.roles.ranking.worker import RankingProcessor
from workers.store.cache import CachedReader
from workers.training.revision import revision

BATCH, TOP = 16, 10
SIZES = (12_101, 100_000, 1_000_000)
ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Way:
    """One way to rank: a function of a number of users; its times in seconds."""

    name: str
    call: Callable[[int], Any]
    alone: list[float] = field(default_factory=list)
    batches: list[float] = field(default_factory=list)

    def time(self, users: int) -> float:
        """Return the seconds of one call."""
        began = time.perf_counter()
        self.call(users)
        return time.perf_counter() - began

    def summary(self) -> dict[str, Any]:
        """Return p50 and p99 of single requests (ms), and users per second in batches (median of calls)."""
        alone, batches = np.array(self.alone) * 1e3, np.array(self.batches)
        return {"row": self.name, "p50_ms": round(float(np.median(alone)), 2),
                "p99_ms": round(float(np.percentile(alone, 99)), 2),
                "users_per_s": round(BATCH / float(np.median(batches)), 1)}


def processor(ranking: RankingModel, items: int, *, knowledge: bool) -> RankingProcessor:
    """Return the ranking worker's processor, over a store that has every user's knowledge, or nobody's."""
    ranker = Ranker(ranking, [f"i{row}" for row in range(items)], "m1", EPSILON)
    return RankingProcessor(ranker, cast("CachedReader", MadeUpReader(knowledge=knowledge)), RankingSettings(top=TOP),
                            clock=lambda: 1e9)


def rows(items: int, ranking: RankingModel, pool: list[RankingRequest]) -> Iterator[Way]:
    """Return the rows for a catalogue."""
    vectors, others = ranking._side[0], ranking._reference_side[0]
    states = torch.randn(BATCH, DIM)
    turn = iter(range(10**9))

    def some(users: int) -> list[RankingRequest]:
        begin = next(turn) * users % (len(pool) - users + 1)
        return pool[begin : begin + users]

    yield Way("two matrix products", lambda users: (states[:users] @ vectors.T, states[:users] @ others.T))
    yield Way("torch, one scorer, top 10", lambda users: (states[:users] @ vectors.T).topk(TOP, 1))
    if importlib.util.find_spec("faiss"):
        import faiss

        faiss.omp_set_num_threads(1)
        index = faiss.IndexFlatIP(DIM)
        index.add(vectors.numpy())
        yield Way("faiss, one scorer, exact top 10", lambda users: index.search(states[:users].numpy(), TOP))
    alone = RankingModel(ranking.behaviour, ranking.fused, {"backbone": {}}, ranking.affinity)
    behaviour, fused = processor(alone, items, knowledge=False), processor(ranking, items, knowledge=True)
    yield Way("Freshet, behaviour alone", lambda users: behaviour(some(users)))
    yield Way("Freshet, knowledge and trust region", lambda users: fused(some(users)))


def agreement(items: int, ranking: RankingModel, pool: list[RankingRequest]) -> dict[str, float]:
    """Return recall@10 of the served lists against the whole distribution in double precision, and the largest loss.

    The loss is log p_ref − log p of a served item (nats). The radius bounds it.
    """
    reader = MadeUpReader(knowledge=True)
    served, exact, worst = {}, {}, -np.inf
    for begin in range(0, len(pool), 4):
        part = pool[begin : begin + 4]
        points = reader.read({request.user_id: 1 for request in part}).points
        found = ranking.rank(RankBatch(
            [[int(item[1:]) for item in request.history] for request in part], [[]] * len(part),
            [UserKnowledge(points[request.user_id].vectors) for request in part], [[]] * len(part),
            current_evidence=True))
        radius = torch.full((len(part),), EPSILON, dtype=torch.float64)
        mine = lists(found.ref_logp, found.fused_logp, radius, TOP)
        whole = trust_region(found.ref_logp, found.fused_logp, radius)[0].topk(TOP, 1).indices
        worst = max(worst, float((found.ref_logp.double().gather(1, mine.items) - mine.logp).max()))
        for at, request in enumerate(part):
            served[request.user_id] = [str(row) for row in mine.items[at].tolist()]
            exact[request.user_id] = [str(row) for row in whole[at].tolist()]
    return {"recall@10": by_user(served, exact), "largest_loss": worst, "radius": EPSILON}


def _throughput(items: int, seconds: float, ready: Any, go: Any, out: Any) -> None:
    """Rank batches in a process of its own for a while; puts (users, seconds)."""
    torch.set_num_threads(1)
    pool = requests(items, 4 * BATCH)
    process = processor(model(items), items, knowledge=True)
    process(pool[:BATCH])
    ready.put(None)
    go.wait()
    users, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        begin = users % (len(pool) - BATCH + 1)
        process(pool[begin : begin + BATCH])
        users += BATCH
    out.put((users, time.perf_counter() - began))


def in_parallel(items: int, processes: int, seconds: float) -> float:
    """Return users per second of several ranking processes together."""
    spawn = multiprocessing.get_context("spawn")
    ready, out, go = spawn.Queue(), spawn.Queue(), spawn.Event()
    children = [spawn.Process(target=_throughput, args=(items, seconds, ready, go, out)) for _ in range(processes)]
    for child in children:
        child.start()
    for _ in children:
        ready.get(timeout=600)
    go.set()
    rates = [users / took for users, took in (out.get(timeout=600) for _ in children)]
    for child in children:
        child.join()
    return sum(rates)


def measured(items: int, args: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of one catalogue size."""
    ranking = model(items)
    pool = requests(items, 64)
    found = list(rows(items, ranking, pool))
    for row in found:
        row.time(1)
        row.time(BATCH)
    for turn in range(args.rounds):
        print(f"  {items:,} items, round {turn + 1} of {args.rounds}", flush=True)
        for row in found:
            row.alone += [row.time(1) for _ in range(args.singles)]
            row.batches += [row.time(BATCH) for _ in range(args.batches)]
    memory = psutil.Process().memory_info().rss
    answers = found[-1].call(4)
    if any(one.message.source != "fused" for one in answers[0] if isinstance(one.message, Recommendation)):
        raise SystemExit("benchmarks.rank.run: the lists were not fused: what was measured is not what is claimed")
    together = in_parallel(items, args.processes, args.seconds) if args.processes > 1 else None
    return {"items": items, "rows": [row.summary() for row in found], **agreement(items, ranking, pool[:32]),
            "users_per_s_together": together and round(together, 1), "processes": args.processes,
            "rss_gib": round(memory / 2**30, 2)}


def table(results: list[dict[str, Any]]) -> str:
    """Return the figures as Markdown."""
    out = ["| items | row | single, p50 | p99 | × limit | users/s in batches of 16, one core |",
           "|--:|---|--:|--:|--:|--:|"]
    for result in results:
        limit = result["rows"][0]["p50_ms"]
        out += [f"| {result['items']:,} | {row['row']} | {row['p50_ms']} ms | {row['p99_ms']} ms "
                f"| {row['p50_ms'] / limit:.1f} | {row['users_per_s']:,.0f} |" for row in result["rows"]]
    out.append("")
    for result in results:
        together = (f"{result['processes']} processes together {result['users_per_s_together']:,.0f} users/s; "
                    if result["users_per_s_together"] else "")
        out.append(f"- {result['items']:,} items: {together}recall@10 against double precision "
                   f"{result['recall@10']:.4f}; largest loss of a served item {result['largest_loss']:.6f} nats "
                   f"(radius {result['radius']}); {result['rss_gib']} GiB.")
    return "\n".join(out)


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="benchmarks.rank.run", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", default=",".join(map(str, SIZES)), help="sizes of catalogues (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds over all rows (%(default)s)")
    parser.add_argument("--singles", type=int, default=60, help="single requests a round (%(default)s)")
    parser.add_argument("--batches", type=int, default=6, help="batches a round (%(default)s)")
    parser.add_argument("--processes", type=int, default=2, help="processes for the total rate (%(default)s)")
    parser.add_argument("--seconds", type=float, default=10.0, help="duration of the total rate (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="5,000 items, one round, saves nothing")
    args = parser.parse_args(argv)
    if args.quick:
        args.items, args.rounds, args.singles, args.batches, args.processes = "5000", 1, 10, 2, 1
    try:
        sizes = [int(size) for size in args.items.split(",")]
    except ValueError:
        parser.error(f"--items takes numbers separated by commas, not {args.items!r}")
    torch.set_num_threads(1)
    results = [measured(size, args) for size in sizes]
    print("\n" + table(results))
    if not args.quick:
        facts = {"revision": revision(), "cpus": psutil.cpu_count(), "processor": platform.processor(),
                 "torch": torch.__version__, "results": results}
        (ROOT / "benchmarks/results/rank.json").write_bytes(orjson.dumps(facts, option=orjson.OPT_INDENT_2))
        fill(ROOT / "docs/benchmarks.md", "rank", table(results))


if __name__ == "__main__":
    main()
