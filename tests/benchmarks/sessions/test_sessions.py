"""The sessions benchmark on a made-up shop: fresh texts help, stale ones harm, guards and policies do what they say."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.sessions import page, plots, run
from benchmarks.sessions.ageing import PolicyStage, course_of, foresight
from benchmarks.sessions.choose import Targets, choose, figures
from benchmarks.sessions.guard import interest_vectors
from benchmarks.sessions.ideas import IDEAS, Idea, Material
from benchmarks.sessions.moments import USERS, read_moments
from benchmarks.sessions.rows import others
from models.data.loading import load_dataset
from models.measuring.protocols import stream_time
from schemas.calibration import Calibration
from schemas.errors import FreshetError
from schemas.settings import RefreshSettings, Settings
from tests.benchmarks.sessions.made_up import EVENTS, write
from workers.terminal.stages import Stages

torch.set_num_threads(1)
SETTINGS = Settings()
SETTINGS = replace(SETTINGS, fit=replace(SETTINGS.fit, dim=16))
TRIED = [("never", RefreshSettings(policy="never")), ("once", RefreshSettings(policy="once")),
         ("every session", RefreshSettings(policy="always", cooldown=0)),
         ("every 5 events", RefreshSettings(policy="every-n", every=5, cooldown=0))]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sessions")
    with Stages() as stages:
        return run.load(write(folder / "data"), folder, SETTINGS, stages, transformer=False, encoder=False)


@pytest.fixture(scope="module")
def result(world):
    with Stages() as stages:
        return run.run(world, SETTINGS, stages, IDEAS[:1], TRIED)


def test_fresh_texts_help_and_stale_ones_do_not(result):
    first = {row["row"]: row for row in result["rows"]["first"]}
    later = {row["row"]: row for row in result["rows"]["later"]}
    assert first["fresh"]["gain"]["low"] > 0
    assert later["fresh"]["gain"]["low"] > 0
    assert later["stale"]["gain"]["high"] < later["fresh"]["gain"]["low"]
    assert result["fresh_above_stale"]["low"] > 0
    # the region bounds what a stale text costs
    assert later["stale"]["logp"] <= later["stale, in the region"]["logp"] + 1e-3
    assert later["stale, in the region"]["logp"] >= later["none"]["logp"] - result["guard"]["epsilon"] - 1e-3


def test_policies_serve_the_texts_they_asked_for(result):
    rows = {row["policy"]: row for row in result["policies"]}
    later = {row["row"]: row for row in result["rows"]["later"]}
    moments = result["moments"]["later"]
    assert rows["never"]["calls"] == rows["once"]["calls"] == 0
    assert rows["never"]["gain"]["mean"] == 0
    assert rows["once"]["gain"] == later["stale"]["gain"]
    assert rows["once"]["guarded"] == later["stale, judge and region"]["gain"]
    assert (rows["every session"]["calls"], rows["every session"]["fresh"]) == (moments, 1)
    assert rows["every session"]["gain"] == later["fresh"]["gain"]
    assert 0 < rows["every 5 events"]["calls"] < moments  # a session has three events, so every second text is skipped


def test_the_page_and_the_plots_show_every_row(result, tmp_path):
    text = page.tables(result)
    for kind in ("first", "later"):
        for row in result["rows"][kind]:
            assert f"| {row['row']} | {row['ndcg_at_10']:.4f} |" in text
    for name in result["foresight"]:
        assert f"| {name} |" in text
    plots.draw(result, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"sessions.svg", "sessions-frontier.svg"}


def stage(world, margin):
    vectors = interest_vectors(world)
    vectors.vectors[:] = np.eye(len(vectors.vectors), vectors.dim, dtype=np.float32)
    calibration = Calibration(
        min_history=3, ttl_s=1e12, drift_mean=0.5, drift_sd=0.2, drift_prior=1.0, drift_slack=0.75, drift_threshold=9.0,
        drift_false_alarm_every=200.0, margin_bound=1.0, epsilon=0.1)
    return PolicyStage(world, course_of(world), vectors, calibration, SETTINGS, lambda row, text: margin)


def test_the_judge_takes_trust_from_a_text_that_harms_and_asks_for_a_new_one(world):
    judged = RefreshSettings(policy="judge", alpha=0.5, cooldown=0)
    harmed, helped = stage(world, -5.0).play(judged), stage(world, 5.0).play(judged)
    assert harmed.calls > 0
    assert harmed.reasons == {"contradiction": harmed.calls}
    assert helped.calls == 0
    assert {glance.trust for glance in helped.glances.values()} == {1.0}
    kept = stage(world, -5.0).play(RefreshSettings(policy="once", alpha=0.5))
    assert {glance.trust for glance in kept.glances.values()} == {0.0}  # three margins of −B suffice at this level
    assert all(glance.signals["judge: wealth against it"] > 0 for glance in kept.glances.values())


def test_a_text_is_served_until_the_next_and_its_age_is_known(world):
    played = stage(world, 0.0).play(RefreshSettings(policy="once"))
    course = course_of(world)
    first = dict(zip(world.moments["first"].user.tolist(), world.moments["first"].row.tolist(), strict=True))
    for row, glance in played.glances.items():
        user = int(world.split.test.user(np.array([row]))[0])
        assert glance.text == first[user] == course.first[user]
        assert glance.signals["age: events"] == row - first[user]
        assert (row - first[user]) % EVENTS == 0
    assert set(played.glances) == set(world.moments["later"].row.tolist())


def test_the_choice_is_cross_validated():
    rng = np.random.default_rng(0)
    m, n = 200, 50
    targets = Targets(np.arange(m), rng.integers(n, size=m), m)
    noise = torch.tensor(rng.normal(size=(m, n)), dtype=torch.float32)
    base = torch.zeros(m, n)
    base[torch.arange(m), torch.from_numpy(targets.item)] = 2.0
    base += torch.tensor(rng.normal(size=(m, n)), dtype=torch.float32)
    nothing = Material(base, noise, noise, noise, noise, torch.ones(m))
    some = figures(base, targets)
    useless = Idea("noise", lambda material, weights: material.base + weights["weight"] * material.words,
                   {"weight": tuple(np.linspace(-0.4, 0.4, 17))})
    found = choose(useless, nothing, targets, np.arange(m), some)
    assert found.crossed[0] <= found.inside
    assert found.crossed[1] < 0.02
    sure = replace(nothing, words=torch.nn.functional.one_hot(torch.from_numpy(targets.item), n).float())
    found = choose(useless, sure, targets, np.arange(m), some)
    assert found.weights == {"weight": 0.4}
    assert found.crossed[0] > 0


def test_foresight_of_a_trigger():
    rng = np.random.default_rng(0)
    useless, user = rng.normal(size=400), np.repeat(np.arange(200), 2)
    exact = foresight(useless * 2 + 1, useless, user, draws=100)
    assert exact["auc"] == 1
    assert exact["rank"] == pytest.approx(1)
    blind = foresight(rng.normal(size=400), useless, user, draws=200)
    assert blind["auc_low"] < 0.5 < blind["auc_high"]
    assert foresight(np.zeros(400), useless, user, draws=10)["auc"] == 0.5  # a silent trigger orders nothing


def test_another_users_text_is_never_the_users_own():
    user = np.repeat(np.arange(20), 4)
    assert (user[others(user)] != user).all()


def test_what_is_missing_is_said_in_a_sentence(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["sessions", "--data", str(tmp_path / "nothing")])
    assert run.main() == 1
    assert capsys.readouterr().err.startswith("sessions: ")
    folder = write(tmp_path / "data")
    lines = (folder / USERS).read_text().splitlines()
    dataset = load_dataset(folder)
    sequences = stream_time(dataset).test
    for change, message in (({"events": 4}, "has no session that begins after 4 events"),
                            ({"user_id": "nobody"}, "written from other events"), ({"moment": "now"}, "moment: ")):
        (folder / USERS).write_text(json.dumps(json.loads(lines[0]) | change) + "\n")
        with pytest.raises(FreshetError, match=message):
            read_moments(folder, dataset, sequences)
    (folder / USERS).write_text(lines[0] + "\n")
    with pytest.raises(FreshetError, match="no clean moment of the kind"):
        read_moments(folder, dataset, sequences)
    (folder / USERS).unlink()
    with pytest.raises(FreshetError, match=r"users\.jsonl does not exist"):
        read_moments(folder, dataset, sequences)
