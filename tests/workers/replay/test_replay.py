from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path

import msgspec
import numpy as np
import orjson
import pytest
from rich.console import Console

from models.knowledge.generation import Generation
from schemas.errors import FreshetError
from schemas.messages import Judgement, KnowledgeRequest
from schemas.settings import EventSettings, RefreshSettings, Settings, to_environ
from streams.decisions.planner import Plan
from streams.decisions.price import BURST
from streams.profile.fold import Event
from tests.workers.fitted import ITEMS, publish, settings_in
from workers.cli import app
from workers.cli.replay import as_json
from workers.replay.budget import meet_budget
from workers.replay.generations import CachedGenerator
from workers.replay.session import ReplaySession
from workers.replay.timeline import Timeline, waves
from workers.terminal.stages import Stages

USERS, EVENTS, SPLIT = 8, 120, 1_600_000_000.0  # the test models' split is at time 0, so all events are played


def write(folder: Path, *, events: int = EVENTS) -> Path:
    """Events of users in bursts, some in the same second: a wave must not contain two of one user."""
    rng = random.Random(5)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "items.jsonl").write_bytes(b"\n".join(orjson.dumps({"item_id": i, "title": i}) for i in ITEMS))
    rows, user = ["user_id,item_id,timestamp"], 0
    for n in range(events):
        user = user if rng.random() < 0.5 else rng.randrange(USERS)
        rows.append(f"u{user},{rng.choice(ITEMS)},{SPLIT + 40 * (n // 2)}")
    (folder / "events.csv").write_text("\n".join(rows))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("data") / "shop")


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    settings = settings_in(tmp_path_factory.mktemp("home"))
    publish(settings, "m1")
    return settings


def session_of(settings: Settings, data: Path, events: int = 0) -> ReplaySession:
    with Stages(Console(quiet=True)) as stages:
        return ReplaySession(settings, data, stages, events)


@pytest.fixture(scope="module")
def session(settings: Settings, data: Path) -> ReplaySession:
    return session_of(settings, data)


class Heard:
    """Every decision of a replay, by user."""

    def __init__(self) -> None:
        self.requests: dict[str, list[KnowledgeRequest]] = {}
        self.margins: dict[str, list[tuple[str, int, float]]] = {}

    def __call__(self, plan: Plan, judgements: Sequence[Judgement]) -> None:
        for request in plan.knowledge:
            same = request.model_copy(update={"requested_at": 0.0, "priority": 0.0})  # depend on the wave
            self.requests.setdefault(request.user_id, []).append(same)
        for judgement in judgements:
            self.margins.setdefault(judgement.user_id, []).extend(
                (m.event_id, m.knowledge_version, m.value) for m in judgement.margins)


def test_never_makes_no_calls_and_has_no_gain(session: ReplaySession) -> None:
    figures = session.run("never", None, 0).figures
    assert figures["calls"] == 0
    assert figures["gain"] == 0.0
    assert figures["gain_interval"] == [0.0, 0.0]
    assert figures["ndcg_at_10"] == figures["reference_ndcg_at_10"] > 0
    assert figures["median_age_s"] is None


def test_returns_and_impressions_are_folded_but_not_predicted(settings: Settings, tmp_path: Path) -> None:
    folder = write(tmp_path / "shop", events=40)
    lines = (folder / "events.csv").read_text().splitlines()
    kinds = ["view", "purchase", "return", "impression"]
    (folder / "events.csv").write_text("\n".join(
        [f"{lines[0]},event_type", *(f"{line},{kinds[n % 4]}" for n, line in enumerate(lines[1:]))]))
    played = session_of(settings, folder).replay(RefreshSettings(policy="never"))
    assert played.record.events == 20
    assert sum(state.apart for state in played.states.values()) >= 20
    for state in played.states.values():
        assert "return" not in state.types
        assert "impression" not in state.types


def test_always_calls_once_per_event_from_min_history_on(session: ReplaySession) -> None:
    figures = session.run("always", None, 0).figures
    users = Counter(event.user_id for event in session.timeline.future)
    assert figures["calls"] == sum(count - 1 for count in users.values())  # min_history is 2
    assert figures["refreshes"]["cold_start"] == len(users)
    assert figures["median_age_events"] == 0
    assert figures["predicted"] == len(session.timeline.future) - len(users)  # no prediction of first events
    assert figures["gain"] != 0
    assert figures["store_bytes_per_user"] > 2 * 3 * 16 + 4 * 16


def test_once_calls_once_per_user(session: ReplaySession) -> None:
    figures = session.run("once", None, 0).figures
    assert figures["refreshes"] == {"cold_start": USERS}
    assert figures["calls"] == USERS


def test_with_current_evidence_knowledge_ages_less(session: ReplaySession) -> None:
    """Knowledge refreshed with every event has current evidence anyway; knowledge generated once has not."""
    served = {(policy, evidence): session.run(policy, None, 0, evidence).columns.served
              for policy in ("always", "once") for evidence in ("current", "stored")}
    np.testing.assert_allclose(served["always", "current"], served["always", "stored"])
    assert not np.allclose(served["once", "current"], served["once", "stored"])


@pytest.mark.parametrize("policy", ["nightly", "drift", "judge", "freshet", "always"])
def test_waves_decide_like_one_event_at_a_time(session: ReplaySession, policy: str) -> None:
    """Decisions are equal, margins up to rounding: the order of a sum depends on the number of rows in a product."""
    refresh = replace(
        session.settings.refresh, policy=policy, every=4, period_s=900.0, alpha=0.6, drift_threshold=1.5, cooldown=1)
    alone, together = Heard(), Heard()
    one = session.replay(refresh, wave=1, listen=alone).record
    many = session.replay(refresh, wave=256, listen=together).record
    assert sum(map(len, alone.requests.values())) > USERS
    assert alone.requests == together.requests
    assert alone.margins.keys() == together.margins.keys()
    for user, margins in alone.margins.items():
        assert [m[:2] for m in margins] == [m[:2] for m in together.margins[user]]
        np.testing.assert_allclose([m[2] for m in margins], [m[2] for m in together.margins[user]], atol=1e-4)
    first, second = one.columns(), many.columns()
    for name in ("place", "user", "served", "reference", "age_s", "age_events"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name), err_msg=name)
    assert one.refreshes == many.refreshes


def test_the_same_command_gives_the_same_bytes(settings: Settings, data: Path, tmp_path: Path) -> None:
    home = replace(settings, home=tmp_path)
    (tmp_path / "models").symlink_to(settings.home / "models")
    first = as_json(session_of(home, data).run("freshet", 300, 3))  # runs the language model
    again = as_json(session_of(home, data).run("freshet", 300, 3))  # reads the cache
    assert first == again
    assert orjson.loads(first)["llm_seconds"] > 0
    assert orjson.loads(first)["seed"] == 3


def test_generations_are_cached_and_counted(settings: Settings, data: Path) -> None:
    first = session_of(settings, data)
    calls = first.run("always", None, 0).figures["calls"]
    second = session_of(settings, data)
    assert len(second.generator) >= calls - first.generator.made
    assert second.run("always", None, 0).figures["calls"] == calls
    assert second.generator.made == 0


def test_the_cache_survives_a_truncated_file(tmp_path: Path) -> None:
    class Counting:
        model_version = "m1"

        def generate(self, histories: Sequence[Sequence[str]]) -> Generation:
            n = len(histories)
            ones = {name: np.ones((n, 3), np.float32) for name in Generation.__dataclass_fields__}
            return Generation(**ones | {"finite": np.ones(n, bool)})

    kept = CachedGenerator(tmp_path, "m1", Counting)
    kept.generate([["a"], ["b"]])
    kept.flush()
    assert len(CachedGenerator(tmp_path, "m1", Counting)) == 2
    (path,) = tmp_path.glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-40])
    again = CachedGenerator(tmp_path, "m1", Counting)
    assert len(again) == 0
    again.generate([["a"], ["b"], ["a"]])
    assert again.made == 2


@pytest.mark.parametrize(("policy", "budget"), [("every-n", 300), ("nightly", 400), ("drift", 150)])
def test_budgets_are_met(session: ReplaySession, policy: str, budget: float) -> None:
    figures = session.run(policy, budget, 0).figures
    # 120 events are coarse: one more call is 8.3 per 1,000
    assert figures["calls_per_1000"] == pytest.approx(budget, rel=0.12, abs=17)
    assert figures["budget"] == budget


def test_stock_is_ready_when_users_return_and_costs_the_policy_nothing(settings: Settings, data: Path) -> None:
    """The model's split is moved into the data, so that there is a past."""
    session = session_of(settings, data)
    cut = len(session.timeline.future) // 2
    future = session.timeline.future[cut:]
    past = [msgspec.structs.replace(event, backfill=True) for event in session.timeline.future[:cut]]
    for stock in (False, True):
        session.restart(Timeline(past, future), stock=stock)
        figures = session.run("once", None, 0).figures
        assert figures["predicted"] == figures["events"]  # every user was in the past
        assert (figures["calls"], figures["stocked"]) == ((0, USERS) if stock else (USERS, 0))
        assert figures["with_knowledge"] == figures["events"] - (0 if stock else USERS)
    assert session.run("never", None, 0).figures["stocked"] == 0
    every = session.run("every-n", 300, 0).figures
    assert every["calls_per_1000"] == pytest.approx(300, abs=25)


def test_the_price_keeps_to_the_budget(session: ReplaySession) -> None:
    figures = session.run("freshet", 20, 0).figures
    assert 0 < figures["calls"] <= 0.02 * figures["events"] + BURST + USERS
    assert figures["calls"] < session.run("freshet", None, 0).figures["calls"]


def test_an_unreachable_budget_gives_the_nearest_value() -> None:
    refresh, calls = meet_budget(RefreshSettings(policy="every-n"), 10, lambda tried: 40 + 900 / tried.every)
    assert refresh.every >= 990
    assert calls == pytest.approx(41, abs=0.5)


def test_a_priced_replay_stays_near_the_order_of_events() -> None:
    events = [Event(f"u{n % 3 if n < 50 else 9}", "i", float(n), "", str(n), n, 0.0) for n in range(100)]
    for block in (None, 10):
        got = list(waves(events, 4, block))
        assert sorted(place for wave in got for place in wave) == list(range(100))
        for wave in got:
            assert len({events[place].user_id for place in wave}) == len(wave) <= 4
        order = [place for wave in got for place in wave]
        for user in {event.user_id for event in events}:
            own = [place for place in order if events[place].user_id == user]
            assert own == sorted(own)
        if block:
            assert all(abs(place - at) < block for at, place in enumerate(order))


def run_cli(settings: Settings, *arguments: str) -> object:
    from typer.testing import CliRunner

    return CliRunner().invoke(app, ["replay", *arguments], env=to_environ(settings) | {"COLUMNS": "200"})


def test_the_command_writes_figures(settings: Settings, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "figures.json"
    done = run_cli(settings, "--data", str(data), "--policy", "every-n", "--budget", "300", "--events", "90",
                   "--json", str(out))
    assert done.exit_code == 0, done.output
    assert "per 1,000 events" in done.output
    figures = orjson.loads(out.read_bytes())
    assert figures["events"] == 90
    assert set(figures) >= {"calls_per_1000", "ndcg_at_10", "recall_at_10", "gain", "gain_interval", "refreshes",
                            "median_age_s", "median_age_events", "store_bytes_per_user", "llm_seconds"}


def test_errors_say_what_to_do(settings: Settings, data: Path, tmp_path: Path) -> None:
    unknown = run_cli(settings, "--data", str(data), "--policy", "sometimes")
    assert unknown.exit_code == 2
    assert "'freshet'" in unknown.output
    assert "nightly" in unknown.output
    for arguments, text in (
        (("--data", str(tmp_path / "no")), "a data set is a folder with events.csv"),
        (("--data", str(data), "--policy", "always", "--budget", "10"), "--budget is for freshet"),
        (("--data", str(data), "--budget", "2000"), "at most 1,000"),
    ):
        wrong = run_cli(settings, *arguments)
        assert isinstance(wrong.exception, FreshetError)
        assert text in str(wrong.exception)


def test_nothing_after_the_split_is_an_error(settings: Settings, tmp_path: Path) -> None:
    folder = write(tmp_path / "old", events=4)
    rows = (folder / "events.csv").read_text().splitlines()
    (folder / "events.csv").write_text("\n".join([rows[0], *("u1,i1,0" for _ in rows[1:])]))
    old = replace(settings, events=EventSettings(earliest=date(1970, 1, 1)))
    with pytest.raises(FreshetError, match="newer than what the current model was fitted on"):
        session_of(old, folder)
