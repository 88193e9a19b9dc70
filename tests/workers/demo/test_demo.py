from pathlib import Path

import orjson
import pytest

from schemas.artifacts import Artifact, Card
from schemas.calibration import Calibration, Worth
from schemas.errors import FreshetError
from schemas.experiment import arm
from schemas.messages import KnowledgeRequest, KnowledgeUpdate, Recommendation, ScoredItem
from schemas.settings import ExperimentSettings, load
from tests.workers.demo.test_stories import turn, words
from tests.workers.home.test_lock import holder
from workers.demo import report
from workers.demo.cost import cost
from workers.demo.inflight import InFlight
from workers.demo.metrics import Metrics
from workers.demo.run import Demo
from workers.demo.screen import Screen, View, line
from workers.demo.stories import Pulse, told
from workers.measurement.experiment import RunningExperiment
from workers.supervision.stack import ROLES

ITEMS = [str(number) for number in range(30)]


RUNNING = ExperimentSettings("spring", 0.3)


def recommendation(user: str, count: int, fused: bool = True) -> Recommendation:
    return Recommendation(
        user_id=user, items=[ScoredItem(item_id=item, score=-1.0) for item in ITEMS[:10]], reference=ITEMS[5:15],
        source="fused" if fused else "reference", fallback=None if fused else "no_knowledge", reason="event",
        lagrange=1.5 if fused else None, kl=0.1, epsilon=0.2, knowledge_version=1, knowledge_age_s=1.0,
        knowledge_behind=2 if fused else None, model_version="m", event_time=1.0, count=count, caused_at=1.0,
        requested_at=1.0, ranked_at=2.0, experiment="spring", arm=arm(user, "spring", 0.3))


def test_one_recommendation_answers_every_event_it_includes() -> None:
    inflight = InFlight({"u": 5})
    for at in (1.0, 2.0, 3.0):
        inflight.sent("u", at)
    inflight.sent("v", 4.0)
    assert inflight.total == 4
    assert inflight.answered("u", 5) == []  # includes none of the new events
    assert inflight.answered("u", 7) == [1.0, 2.0]
    assert inflight.answered("u", 7) == []  # delivered again
    assert inflight.oldest() == 3.0
    assert inflight.answered("v", 1) == [4.0]
    assert inflight.total == 1


def test_a_dead_letter_is_an_answer_and_renumbers_later_events() -> None:
    inflight = InFlight({})
    for at in (1.0, 2.0, 3.0):
        inflight.sent("u", at)
        inflight.placed("u", at, 0, int(at))
    assert inflight.dead_lettered(0, 2) == "u"
    assert inflight.dead_lettered(0, 2) is None
    assert inflight.dead_lettered(0, 99) is None  # not an event of this run
    assert inflight.answered("u", 2) == [1.0, 3.0]
    assert inflight.next_count("u") == 3
    assert inflight.total == 0


def recorded(trial: RunningExperiment | None = None) -> Metrics:
    """Metrics of a stream of 300 events, recorded like the demo does."""
    metrics = Metrics(trial=trial)
    for number in range(300):
        user = f"u{number % 20}"
        count = number // 20 + 1
        metrics.produced(user, ITEMS[number % 30], count, float(number))
        if trial is not None:
            trial.add_event(user, ITEMS[number % 30], f"e{number}", float(number))
        metrics.recommended(recommendation(user, count, fused=count > 3))
        metrics.answered(0.01 * (1 + number % 7))
        if count == 3:
            metrics.refresh_requested(KnowledgeRequest(
                user_id=user, version=1, reason="cold_start", history=["1"], count=3, event_id="e", event_time=1.0,
                caused_at=1.0, requested_at=1.0))
            metrics.refreshed(KnowledgeUpdate(
                user_id=user, version=1, model_version="m", reason="cold_start", count=3, event_time=1.0,
                history_hash="h", caused_at=1.0, generated_at=1.2 + number / 1000))
        if number % 30 == 0:
            metrics.sample(number / 30, 3, {"g": number % 5})
    return metrics


def test_figures_match_the_recorded_messages() -> None:
    metrics = recorded()
    figures = metrics.figures(stream_s=3.0)
    assert figures["events"] == 300
    assert figures["events_per_s"] == 100.0
    assert figures["recommendations"] == 300
    assert figures["refreshes"] == {"cold_start": 20, "drift": 0, "contradiction": 0, "stale": 0}
    assert figures["llm_calls"] == 20
    assert metrics.refreshes_waiting == 0
    assert 0.2 < figures["freshness_s"]["p50"] < figures["freshness_s"]["p99"]
    assert figures["quality"]["n"] == 280  # every user's first event had no recommendation before it
    assert figures["fallbacks"] == {"no_knowledge": 60}


def test_figures_include_a_running_experiment() -> None:
    assert recorded().figures(3.0)["experiment"] is None
    figures = recorded(RunningExperiment(RUNNING, window_s=100.0)).figures(3.0)["experiment"]
    assert figures["users"] == 20  # all entered in the first 20 of 300 seconds
    assert {name: part["users"] for name, part in figures["arms"].items()} == {
        name: sum(arm(f"u{user}", "spring", 0.3) == name for user in range(20)) for name in ("treatment", "control")}
    assert figures["arms"]["control"]["reward"] > 0


def test_an_older_recommendation_does_not_replace_a_newer_offer() -> None:
    metrics = Metrics()
    metrics.recommended(recommendation("u", 5))
    metrics.recommended(recommendation("u", 4))
    assert metrics.offers["u"].count == 5
    assert metrics.offers["u"].knowledge_count == 3


def test_a_repeated_refresh_request_counts_once() -> None:
    metrics = Metrics()
    request = KnowledgeRequest(
        user_id="u", version=2, reason="drift", history=["1"], count=3, event_id="e", event_time=1.0, caused_at=1.0,
        requested_at=1.0)
    metrics.refresh_requested(request)
    metrics.refresh_requested(request)
    assert metrics.requested == {"drift": 1}
    assert metrics.refreshes_waiting == 1


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    calibration = Calibration(
        min_history=3, ttl_s=1.0, drift_mean=0.1, drift_sd=0.1, drift_prior=1, drift_slack=0.5, drift_threshold=4,
        drift_false_alarm_every=100, margin_bound=2, epsilon=0.1)
    (tmp_path / "calibration.json").write_text(calibration.model_dump_json())
    card = Card(model_version="m", created_at=0, data_hash="d", settings={}, split_time=0,
                files={"calibration.json": ""}, parts=[
                    Worth(part="behaviour", adds=0.1016, low=0.09, high=0.11, used=True, weight=1.0),
                    Worth(part="written", adds=0.0021, low=0.0004, high=0.0038, used=True, weight=0.6),
                    Worth(part="user_vectors", adds=0.0001, low=-0.0004, high=0.0006, used=True, weight=1.0)])
    return Artifact(tmp_path, card)


@pytest.mark.parametrize("metrics", [
    recorded(), Metrics(), recorded(RunningExperiment(RUNNING, window_s=100.0)),
    Metrics(trial=RunningExperiment(RUNNING))],
    ids=["full", "no events", "an experiment", "an experiment without users"])
def test_report_is_one_self_contained_page(metrics: Metrics, artifact: Artifact) -> None:
    figures = metrics.figures(3.0) | {
        "held_out_nll": {"behaviour": 6.0, "with_item_texts": 5.9, "with_users_knowledge": 5.8},
        "wall_s": 10.0, "stream_s": 3.0, "peak_rss_bytes": 2**30, "stages": {"fit": 3.0}, "fit": {}, "restarts": 0,
        "interrupted": True, "error": "<script>x</script>", "versions": report.versions(artifact), "settings": {},
        "run": {"data": "d", "speed": 0.0, "window": 9, "per_user": 2}, "described": 0,
        "cost": cost({"generated": 30, "llm_tokens": 240}, 20, 600)}
    orjson.dumps(figures)
    page = report.html(figures, metrics, artifact, {"drift": None, "contradiction": None, "cold_start": None}, {})
    assert "<script>" not in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page
    assert ("data:image/png" in page) == (metrics.events > 0)
    assert "written item knowledge" in page
    assert "+0.0004 to +0.0038" in page
    assert page.count("the demo asks for it") == 1
    assert page.count("Nobody in this run") == 3
    assert "KL(" not in page
    assert "λ" not in page
    assert "no item becomes less likely than" in " ".join(page.split())
    assert "report.html" in report.closing(figures, Path("runs/x"))
    assert ("What did the experiment find?" in page) == (metrics.trial is not None)
    assert ("experiment spring" in report.closing(figures, Path("runs/x"))) == (metrics.trial is not None)


def test_a_story_is_told_with_titles_that_are_text_alone(artifact: Artifact) -> None:
    metrics = recorded()
    figures = metrics.figures(3.0) | {
        "held_out_nll": {}, "wall_s": 10.0, "stream_s": 3.0, "peak_rss_bytes": 2**30, "stages": {}, "fit": {},
        "restarts": 0, "interrupted": False, "error": None, "versions": {}, "settings": {"refresh": {"alpha": 0.05}},
        "run": {"data": "d", "speed": 0.0, "window": 9, "per_user": 2}, "described": 3, "cost": cost({}, 0, 600)}
    drifted = told(turn(), 7, "aabe??dxzab", words, [Pulse(3, 2.0, 0), Pulse(5, 8.0, 0)], {"drift": 7.0})
    new = told(turn("<b>v</b>", "cold_start"), 1, "aabe??", words)
    page = " ".join(report.html(
        figures, metrics, artifact, {"drift": drifted, "contradiction": None, "cold_start": new},
        {"a": "Alien", "c": "<i>Contact</i>", "d": "Dune"}).split())
    assert "User u, from love and paris to space" in page
    assert "3 events after it was asked for last" in page
    assert '<td class="by-knowledge">&lt;i&gt;Contact&lt;/i&gt;</td>' in page
    assert "<b>Dune</b> <span>#2 with new knowledge, – on the list before, – by behaviour</span>" in page
    assert "Of 7 such refreshes" in page
    assert page.count("<svg") == 1
    assert page.count("Nobody in this run") == 1
    assert "&lt;b&gt;v&lt;/b&gt;" in page
    assert "<b>v</b>" not in page


def test_without_a_terminal_the_screen_prints_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    text = line(View("stream", done=3, total=9), recorded())
    assert "3/9" in text
    assert "cold_start 20" in text
    with Screen() as screen:
        screen.show(View("stream"), Metrics(), force=True)
    assert "stream: 0/0" in capsys.readouterr().out


@pytest.mark.parametrize("role", ROLES)
def test_the_demo_leaves_a_home_alone_on_which_a_service_runs(tmp_path: Path, role: str) -> None:
    for state in ("streams", "guard"):
        (tmp_path / state).mkdir()
        (tmp_path / state / "evidence").write_text("weeks of it")
    process = holder(tmp_path, role)
    demo = Demo(load({"FRESHET_HOME": str(tmp_path)}), None, speed=0, events=1, window=0, per_user=0,
                out=tmp_path / "runs")
    try:
        with pytest.raises(FreshetError, match=f"process {process.pid} .*holds {role}"):
            demo.run()  # before it fetches or fits anything
    finally:
        process.kill()
        process.communicate()
    assert [(tmp_path / state / "evidence").read_text() for state in ("streams", "guard")] == ["weeks of it"] * 2
    assert not (tmp_path / "models").exists()
    assert not (tmp_path / "runs").exists()
