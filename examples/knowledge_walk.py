"""A walk through one user's knowledge, cell by cell: when it was due, what it is, what it changed, what it was worth.

Open it in an editor that runs `# %%` cells (VS Code, Spyder, PyCharm), or run it as a whole. It needs a fitted model
and the data it was fitted on; `make demo` leaves both. Nothing has to run.

    FRESHET_HOME=.freshet .venv/bin/python examples/knowledge_walk.py
    WALK_DATA=my-shop WALK_USER=42 .venv/bin/python examples/knowledge_walk.py
"""

# %% The model in use, its data, and one user
import os
from collections import Counter
from pathlib import Path

import msgspec
import torch

from models.data.loading import load_dataset
from models.serving.requests import RankBatch, UserKnowledge
from models.trust.region import trust_region
from schemas.artifacts import Registry
from schemas.messages import KnowledgeUpdate
from schemas.settings import load
from streams.detection.trust import judge
from streams.service.following import load_planner
from workers.home.titles import read_titles
from workers.replay.timeline import timeline
from workers.roles.knowledge.generator import LlmGenerator
from workers.roles.ranking.ranker import Ranker

settings = load()
artifact = Registry(settings.home).open()
titles = read_titles(settings.home)
data = load_dataset(Path(os.environ.get("WALK_DATA", settings.home / "data" / "ml-100k")), settings.events)
played = timeline(data, artifact.card.split_time)
counts = Counter(event.user_id for event in played.future)
user = os.environ.get("WALK_USER") or counts.most_common(1)[0][0]
mine = [event for event in (*played.past, *played.future) if event.user_id == user]
print(f"user {user}: {len(mine)} events, the last: {', '.join(titles.title(event.item_id) for event in mine[-5:])}")

# %% When was knowledge due? Streams' own decisions, one event after the other
planner = load_planner(settings)
states, requests = {}, []
for event in mine:
    live = msgspec.structs.replace(event, backfill=False)
    for request in planner.events(states, [live], now=event.caused_at).knowledge:
        requests.append(request)
        print(f"event {request.count:>4}: {request.reason:<13} drift {states[user].cusum:5.1f}, alarm at "
              f"{planner.detector.threshold:.1f}")
        update = KnowledgeUpdate(
            user_id=user, version=request.version, model_version=artifact.model_version, reason=request.reason,
            count=request.count, event_time=request.event_time, history_hash="", caused_at=request.caused_at,
            generated_at=request.caused_at)
        planner.updates(states, [(update, event.caused_at)], now=event.caused_at)  # as if it were there at once
if not requests:
    raise SystemExit(f"nothing was ever due for {user}: they need {artifact.calibration().min_history} events")

# %% What it is: K vectors that a frozen language model made of the history before the last request but five events
generator, ranker = LlmGenerator.load(settings, artifact), Ranker.load(settings)
cut = min(requests[-1].count, len(mine) - 5)
known = [event.item_id for event in mine[:cut]]
made = generator.generate([known], [user])
print(f"{made.vectors.shape[1]} vectors of {made.vectors.shape[2]}, codewords {made.codes[0].tolist()}, of "
      f"{min(len(known), settings.llm.history)} items: {', '.join(map(titles.title, known[-settings.llm.history:]))}")

# %% What it changes: the list with it, the list without, and what the trust region lets through
rows = [ranker.row(item) for item in known]
later = [ranker.row(event.item_id) for event in mine[cut:]]
knowledge = UserKnowledge(made.vectors[0], made.items[0], made.weights[0])
result = ranker.model.rank(RankBatch([rows], [[]], [knowledge], [[]], settings.ranking.top, True))
served, inverse, kl = trust_region(result.ref_logp, result.fused_logp, torch.tensor([ranker.epsilon]))
print(f"radius {ranker.epsilon:.3f} nats, μ {1 / float(inverse[0]) if inverse[0] > 0 else float('inf'):.2f}, "
      f"moved {float(kl[0]):.4f} nats from behaviour")
lists = {name: [ranker.items[row] for row in logp[0].topk(settings.ranking.top).indices.tolist()] for name, logp in (
    ("behaviour", result.ref_logp), ("shown", served), ("unbounded", result.fused_logp))}
for place, row in enumerate(zip(*lists.values(), strict=True), 1):
    print(f"{place:>3}  " + "  ".join(f"{titles.title(item)[:30]:<30}" for item in row))

# %% What it was worth: each later event, with the history before it, under both models (nats; above 0 = it helped)
whole = [*rows, *later]
judged = [(cut + place, item) for place, item in enumerate(later) if item >= 0]
margins = ranker.model.rank(RankBatch([whole], [[]], [knowledge], [judged], 1, True)).margins[0]
for (_, item), margin in zip(judged, margins, strict=True):
    if margin is not None:
        print(f"{margin:+.3f}  {titles.title(ranker.items[item])}")

# %% Is it still trusted? The bet against it: at wealth 1/α it is contradicted, and behaviour alone is shown
values = [margin for margin in margins if margin is not None]
verdict = judge([], [], 1.0, values, artifact.calibration().margin_bound, settings.refresh.alpha)
print(f"trust {verdict.trust:.2f} after {len(values)} events" + (
    "" if verdict.contradicted is None else f"; contradicted at the {verdict.contradicted + 1}th"))
