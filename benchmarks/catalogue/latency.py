"""From a message on `catalogue` to the first list that can hold the item for its text, and what later items cost."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from benchmarks.catalogue.quality import LaterWorld
from models.evidence.ease import Ease
from models.evidence.reference import Reference
from models.scorers.backbone import Backbone
from models.scorers.fusion import FusedScorer
from models.serving.ranking_model import EVERYONE, RankingModel
from models.serving.requests import RankBatch
from schemas.artifacts import Artifact, Card, Registry, write_card
from schemas.calibration import Calibration
from schemas.catalogue.item import CatalogueItem
from schemas.codec import encode
from schemas.settings import Settings
from schemas.topics import CATALOGUE
from workers.data.produce import EventProducer
from workers.home.store_key import kept_key, new_key
from workers.kafka.topics import create_topics
from workers.roles.knowledge.later import LaterItemsThread
from workers.roles.ranking.later import CatalogueFollower
from workers.roles.ranking.ranker import Ranker
from workers.store.item_files import known_items, save_items
from workers.supervision.broker import Broker

SHAPE = {"dim": 64, "layers": 2, "heads": 2, "max_len": 50, "dropout": 0.0}
BATCH = 32
WAIT_S = 120.0
CALIBRATION = Calibration(
    min_history=1, ttl_s=1e12, drift_mean=0.5, drift_sd=0.2, drift_prior=1.0, drift_slack=0.5, drift_threshold=1e9,
    drift_false_alarm_every=1e12, margin_bound=1.0, epsilon=0.1, knowledge=False)


def publish(home: Path, world: LaterWorld, base: Ease, encoder: str) -> Artifact:
    """Publish a version with the closed form and random transformers, whose weights change no time."""
    torch.manual_seed(0)
    shape = SHAPE | {"n_items": world.fitted}
    backbone = Backbone(**shape)  # type: ignore[arg-type]
    fused = FusedScorer(torch.randn(world.fitted, 128).half().float(), None, **shape)  # type: ignore[arg-type]
    for scorer in (backbone, fused):
        torch.nn.init.normal_(scorer.fresh_vector, std=0.02)
    fused.evidence_gain.fill_(10.0)
    model = RankingModel(Reference(backbone, base, 10.0), fused, {"backbone": shape, EVERYONE: True}, base)
    registry, known = Registry(home), world.known(world.fitted)
    with registry.publish("bench") as folder:
        model.save(folder, world.items[: world.fitted], world.texts[: world.fitted])
        save_items(folder, None, known.encoded, encoder)
        (folder / "calibration.json").write_text(CALIBRATION.model_dump_json())
        write_card(folder, Card(model_version="bench", created_at=0, data_hash="", settings={}, split_time=0, files={}))
    registry.select("bench")
    return registry.open("bench")


def cost(artifact: Artifact, world: LaterWorld, rounds: int, say: Callable[[str], None]) -> dict[str, float]:
    """Return ms per list with as many items fitted and with some of them come later, in turn, and memory."""
    plain, grown = RankingModel.load(artifact), RankingModel.load(artifact)
    own = psutil.Process()
    began = own.memory_info().rss
    grown.grow(len(world.items), lambda: known_items(artifact))
    for begin in range(world.fitted, len(world.items), 5):
        rows = list(range(begin, min(len(world.items), begin + 5)))
        grown.put(rows, world.described(rows), [{} for _ in rows])
    memory = (own.memory_info().rss - began) / 2**20
    batch = _batch(world.fitted)
    took: dict[str, list[float]] = {"plain": [], "grown": []}
    for _ in range(rounds):
        for name, model in (("plain", plain), ("grown", grown)):
            start = time.perf_counter()
            model.rank(batch)
            took[name].append(1000 * (time.perf_counter() - start) / BATCH)
    out = {name: float(np.median(times)) for name, times in took.items()}
    out |= {"ratio": out["grown"] / out["plain"], "items_ratio": len(world.items) / world.fitted, "memory_mb": memory}
    say(f"a list takes {out['plain']:.2f} ms, with {len(world.items) - world.fitted} later items {out['grown']:.2f} ms "
        f"(items × {out['items_ratio']:.3f}, time × {out['ratio']:.3f}); memory +{memory:.0f} MB")
    return out


def _batch(n: int) -> RankBatch:
    rng = np.random.default_rng(0)
    histories = [rng.integers(0, n, 20).tolist() for _ in range(BATCH)]
    return RankBatch(histories=histories, seen=[[] for _ in histories], knowledge=[None] * BATCH)


def latency(
    settings: Settings, artifact: Artifact, world: LaterWorld, rate: float, say: Callable[[str], None],
) -> dict[str, Any]:
    """Return quantiles of the seconds until items are taken, and until withdrawn ones are gone.

    Broker and store are processes of their own. Reading texts and ranking share this one, a ranking worker that is busy
    with lists all the time: the harder case.
    """
    broker = Broker(0, settings.home / "broker.log")
    broker.start()
    store = _store(settings.home)
    settings = replace(settings, kafka=replace(settings.kafka, bootstrap=broker.bootstrap), qdrant=replace(
        settings.qdrant, url=store[1], api_key=kept_key(settings.home, store[1])))
    try:
        create_topics(settings.kafka)
        return _measured(settings, artifact, world, rate, say)
    finally:
        store[0].kill()
        store[0].wait()
        if broker.child is not None:
            broker.child.kill()


def _measured(
    settings: Settings, artifact: Artifact, world: LaterWorld, rate: float, say: Callable[[str], None],
) -> dict[str, Any]:
    ranker = Ranker.load(settings)
    follower, thread = CatalogueFollower(ranker, settings), LaterItemsThread(settings, artifact)
    producer, batch = EventProducer(settings.kafka), _batch(world.fitted)
    follower.catch_up()
    producer.record(CATALOGUE, "warm", encode(CatalogueItem(item_id="warm", title="the first loads the encoder")))
    new = world.items[world.fitted:]
    titles = dict(zip(new, world.texts[world.fitted:], strict=True))
    came, gone = {}, {}
    for what, waiting, out, done in (
            ("new", ["warm"], {}, lambda item: item in ranker.catalogue.rows),
            ("new", [*new], came, lambda item: item in ranker.catalogue.rows),
            ("withdrawn", [*new], gone, lambda item: not ranker.catalogue.available[ranker.catalogue.rows[item]])):
        sent: dict[str, float] = {"warm": time.monotonic()} if waiting == ["warm"] else {}
        todo = [] if sent else list(waiting)
        begin, deadline = time.monotonic(), time.monotonic() + WAIT_S + len(waiting) / rate
        while todo or len(out) < len(sent):
            while todo and time.monotonic() - begin >= (len(waiting) - len(todo)) / rate:
                item = todo.pop(0)
                sent[item] = begin + (len(waiting) - len(todo) - 1) / rate  # when it was due
                producer.record(CATALOGUE, item, encode(CatalogueItem(
                    item_id=item, title=titles[item], available=what == "new")))
            producer.poll()
            follower.poll()
            now = time.monotonic()
            for item in sent.keys() - out.keys():
                if done(item) and ranker.catalogue.rows[item] not in ranker.unread:
                    out[item] = now - sent[item]
            ranker.model.rank(batch)
            if now > deadline:
                raise RuntimeError(f"{len(sent) - len(out)} items did not come through: {follower.counters()}")
    follower.close()
    thread.close()
    found = {"rate": rate, "new": _quantiles(list(came.values())), "withdrawn": _quantiles(list(gone.values()))}
    say(f"{len(came)} items at {rate:g}/s: in lists after {found['new']}, withdrawn after {found['withdrawn']} seconds")
    return found


def _quantiles(seconds: list[float]) -> dict[str, float]:
    return {f"p{q}": round(float(np.percentile(seconds, q)), 3) for q in (50, 99)}


def _store(home: Path) -> tuple[subprocess.Popen[bytes], str]:
    ready = home / "run" / "store.ready"
    code = ("from workers.store.embedded.server import main; from schemas.settings import load; main(load(), 0)")
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=_environ(home))
    deadline = time.monotonic() + WAIT_S
    while not (ready.is_file() and ready.read_text()):
        if time.monotonic() > deadline or process.poll() is not None:
            raise RuntimeError("the store did not start")
        time.sleep(0.05)
    return process, ready.read_text()


def _environ(home: Path) -> dict[str, str]:
    return {**os.environ, "FRESHET_HOME": str(home), "FRESHET_QDRANT_API_KEY": new_key()}
