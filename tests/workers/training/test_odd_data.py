"""Data at the edge of what makes sense: a fit, a ranking and a replay, or one line that says why not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import orjson
import pytest
import torch
from rich.console import Console

from models.serving.requests import RankBatch
from schemas.errors import FreshetError
from schemas.settings import FitSettings, LlmSettings, Settings
from tests.models import tiny
from workers.cli.replay import as_json
from workers.replay.session import ReplaySession
from workers.roles.ranking.ranker import Ranker
from workers.terminal.stages import Stages
from workers.training.fit import run

Rows = list[tuple[str, int, int]]  # user, item, seconds after the start
ITEMS = 24


def usual(users: int = 30, each: int = 8, items: int = ITEMS) -> Rows:
    rng = np.random.default_rng(1)
    return [(f"u{user}", int((start + step) % items), int(3600 * step + 60 * user))
            for user, start in enumerate(rng.integers(items, size=users)) for step in range(each)]


def everything_taken() -> Rows:
    """One user who has taken the whole catalogue, and goes on."""
    return usual() + [("all", at % ITEMS, 900 * at) for at in range(2 * ITEMS)]


def everything_taken_by_all() -> Rows:
    return [(f"u{user}", at, 3600 * at + user) for user in range(12) for at in range(ITEMS)]


ODD: dict[str, tuple[Rows, int]] = {
    "a user has taken everything": (everything_taken(), ITEMS),
    "all users have taken everything": (everything_taken_by_all(), ITEMS),
    "one item": ([(f"u{user}", 0, 60 * (user + 40 * at)) for user in range(30) for at in range(4)], 1),
    "two items": (usual(items=2), 2),
    "one user": ([("u", at % ITEMS, 60 * at) for at in range(120)], ITEMS),
    "all times equal": ([(user, item, 0) for user, item, _ in usual()], ITEMS),
    "one event per user": ([(f"u{n}", n % ITEMS, 60 * n) for n in range(80)], ITEMS),
    "two events": ([("u", 0, 0), ("u", 1, 60)], ITEMS),
    "one event": ([("u", 0, 0)], ITEMS),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("home")
    tiny.save(folder / "llm")
    return folder


@pytest.mark.parametrize("system", ["freshet", "dense"])
@pytest.mark.parametrize("name", ODD)
def test_a_fit_and_a_ranking_or_one_line_that_says_why_not(home: Path, tmp_path: Path, name: str, system: str) -> None:
    rows, items = ODD[name]
    (tmp_path / "events.csv").write_text("user_id,item_id,timestamp\n" + "".join(
        f"{user},i{item},{1_600_000_000 + at}\n" for user, item, at in rows))
    (tmp_path / "items.jsonl").write_bytes(b"\n".join(
        orjson.dumps({"item_id": f"i{item}", "title": f"thing {item}"}) for item in range(items)))
    settings = Settings(
        home=tmp_path / "home", fit=FitSettings(system=system, dim=16, layers=1, epochs=1, knowledge_epochs=1,
                                                instructions=2, codes=4, device="cpu"),
        llm=LlmSettings(name=str(home / "llm"), device="cpu", batch=8, history=4, item_tokens=8, depth=1.0))
    why_not = ""
    try:
        with Stages(Console(quiet=True)) as stages:
            run(settings, tmp_path, stages)
    except FreshetError as error:
        why_not = str(error)
    if why_not:
        assert "\n" not in why_not
        assert len(rows) < 200 or "item" in name, f"{name}: {why_not}"
        return
    try:
        with Stages(Console(quiet=True)) as stages:
            replay = ReplaySession(settings, tmp_path, stages)
        outcome = replay.run("once", None, 0)
        assert outcome.figures["events"] > 0
        assert "NaN" not in as_json(outcome).decode()
    except FreshetError as error:
        why_not = str(error)
    assert "\n" not in why_not
    ranker = Ranker.load(settings)
    everything = list(range(len(ranker.items)))
    histories = [[], everything[:1], everything]
    found = ranker.model.rank(RankBatch(
        histories=histories, seen=[[], [], everything], judged=[[], [], []], knowledge=[None, None, None], top=5,
        current_evidence=True))
    assert not found.ref_logp[:1].isnan().any()
    assert (found.ref_logp[2].isnan() | (found.ref_logp[2] == -torch.inf)).all(), "nothing is left for the third"
