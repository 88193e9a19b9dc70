from dataclasses import replace

import numpy as np
import pytest
import torch

from models.calibration.scoring import score_events
from models.data.dataset import Dataset, Events, split
from models.data.fold import Fold
from models.data.sequences import Sequences
from models.evidence.reference import Reference
from models.fitting.freshet import fit
from models.knowledge.composition import Composed
from models.knowledge.objectives import PrimalDual
from models.knowledge.training import TrainingPlan
from models.knowledge.training import train as train_knowledge
from models.language.item_cache import ItemCache
from models.measuring.metrics import metrics, ndcg, recall
from models.scorers import training
from models.scorers.backbone import Backbone
from models.scorers.ranks import hidden_before, target_ranks
from models.scorers.snapshots import after, batch_of, draw, regular
from models.scorers.training import extend, train_fused, train_reference
from models.serving.knowledge_model import load_knowledge
from models.serving.ranking_model import RankingModel
from models.serving.requests import RankBatch, UserKnowledge
from models.systems.freshet.fit_fold import STAGES
from models.systems.lwgr.knowledge import KnowledgeModel
from models.systems.lwgr.source import CodebookSource
from models.trust.radius import (
    EPSILONS,
    ScoredEvents,
    calibrate_epsilon,
    calibrate_min_history,
    margins_by_user,
)
from schemas.artifacts import Card, Registry, write_card
from schemas.errors import ArtifactError
from schemas.settings import FitSettings, LlmSettings, Settings, StateSettings
from tests.models import tiny

torch.set_num_threads(1)
USERS, ITEMS = 30, 24


def chains(seed=0, each=14):
    """Users who step through the catalogue by 1 or 2 items: easy to learn from behaviour."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(USERS):
        start, step = rng.integers(ITEMS), 1 + user % 2
        rows += [(rng.uniform(0, 50) + at, user, (start + at * step) % ITEMS) for at in range(each)]
    rows.sort()
    time, user, item = (np.array(column) for column in zip(*rows, strict=True))
    events = Events(user.astype(np.int64), item.astype(np.int64), time, np.zeros(len(time), np.int64))
    texts = [f"thing {row}" if row % 5 else "" for row in range(ITEMS)]
    return Dataset(events, [str(u) for u in range(USERS)], [str(i) for i in range(ITEMS)], ["x"], texts, {}, "hash")


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    return tiny.load(tmp_path_factory.mktemp("llm"))


@pytest.fixture(scope="module")
def data():
    return chains()


SETTINGS = replace(
    Settings(), state=StateSettings(history=8), llm=LlmSettings(batch=8, history=4, item_tokens=8),
    fit=FitSettings(dim=16, layers=1, dropout=0.1, epochs=40, knowledge_epochs=2, instructions=3, codes=4,
                  parts="on"))


@pytest.fixture(scope="module")
def fitted(data, llm, tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setattr("models.systems.lwgr.source.THROUGH_LLM", 24)
    patch.setattr("models.knowledge.judging.JUDGED", 50)
    cache = ItemCache.build(llm, data.texts, tmp_path_factory.mktemp("cache"), None, SETTINGS.llm.item_tokens)
    calls = []
    result = fit(data, split(data, 0.9)[0], SETTINGS, llm, cache, lambda *call: calls.append(call))
    patch.undo()
    return result, cache, calls


def test_reference_learns_and_is_reproducible(data):
    fold = Fold.of(data.events, USERS, ITEMS)
    first, found = train_reference(fold, SETTINGS.fit, 8)
    second, _ = train_reference(fold, SETTINGS.fit, 8)
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, second.state_dict()[name])
    assert found["nll"] < np.log(ITEMS) - 0.05  # uniform guessing
    longer = extend(first, fold, SETTINGS.fit)
    assert not torch.equal(longer.items, first.items)


def test_a_fold_trains_on_the_past_only(data):
    fold = Fold.of(data.events, USERS, ITEMS, 0.25)
    train = fold.training()
    cut = len(data.events) - int(len(data.events) * 0.25)
    assert sorted(train.index.tolist()) == list(range(cut))
    held = fold.sequences.index[np.concatenate([np.arange(a, b) for a, b in zip(
        fold.begin, fold.sequences.offsets[1:], strict=True)])]
    assert sorted(held.tolist()) == list(range(cut, len(data.events)))


def test_new_items_are_not_negatives_and_are_scored_by_text(data):
    events = data.events[data.events.item != 3]
    fold = Fold.of(events, USERS, ITEMS)
    model, _ = train_fused(fold, torch.randn(ITEMS, 4), SETTINGS.fit, 8)
    assert bool(model.fresh[3])
    assert model.bias[3] == 0  # never trained


def test_sampled_negatives_estimate_the_full_softmax(monkeypatch):
    torch.manual_seed(0)
    model = Backbone(2000, 8, 1, 1, 4, 0.0, torch.arange(2000) >= 1990)
    side = (torch.randn(2000, 8), torch.randn(2000))
    counts = torch.randint(1, 100, (2000,)) * ~model.fresh
    hidden, target = torch.randn(300, 8), torch.multinomial(counts.double(), 300, replacement=True)
    window = torch.arange(len(target))
    full = training._softmax_loss(model, hidden, target, side, counts, window)
    monkeypatch.setattr(training, "FULL", 10)
    monkeypatch.setattr(training, "NEGATIVES", 500)
    sampled = [training._softmax_loss(model, hidden, target, side, counts, window).item() for _ in range(30)]
    assert np.mean(sampled) == pytest.approx(full.item(), rel=0.02)


def test_the_share_of_new_items_matches_the_held_out_events():
    rng = np.random.default_rng(0)
    item = rng.integers(0, 20, 1000)
    item[900:] = np.where(rng.random(100) < 0.4, rng.integers(20, ITEMS, 100), item[900:])  # new and popular items
    events = Events(rng.integers(0, USERS, 1000), item, np.arange(1000.0), np.zeros(1000, np.int64))
    fold = Fold.of(events, USERS, ITEMS)
    model, _ = train_reference(fold, replace(SETTINGS.fit, epochs=2), 8)
    assert model.fresh.tolist() == [False] * 20 + [True] * 4
    rows, hidden = hidden_before(model, fold.sequences, fold.begin, 6)
    share = model.scores(hidden).softmax(-1)[:, model.fresh].sum(-1).mean().item()
    assert share == pytest.approx((fold.sequences.item[rows] >= 20).mean(), abs=1e-3)
    few = Fold.of(Events(events.user, np.minimum(item, 19), events.time, events.type), USERS, ITEMS)
    assert training.fresh_shift(model, few) == 0


def test_ranks_exclude_seen_items(data):
    sequences = Sequences.of(data.events, USERS)
    rows = np.arange(len(sequences.item))
    popular = torch.arange(ITEMS, 0, -1.0)
    ranks, logp = target_ranks(lambda part: popular.repeat(len(part), 1), ITEMS, sequences, rows)
    for row in rows[:100]:
        user = np.searchsorted(sequences.offsets, row, "right") - 1
        seen = set(sequences.item[sequences.offsets[user] : row].tolist())
        item = int(sequences.item[row])
        expected = ITEMS if item in seen else sum(other < item and other not in seen for other in range(ITEMS))
        assert ranks[row] == expected
        assert logp[row] == pytest.approx(float(popular.log_softmax(0)[item]), abs=1e-5)


def test_hidden_states_equal_those_in_serving(data):
    fold = Fold.of(data.events, USERS, ITEMS)
    model, _ = train_reference(fold, replace(SETTINGS.fit, epochs=1), 8)
    sequences = fold.sequences
    rows, hidden = hidden_before(model, sequences, sequences.offsets[:-1])
    assert rows.tolist() == list(range(len(sequences.item)))
    for row in (0, 5, 13, 14, 60):
        user = np.searchsorted(sequences.offsets, row, "right") - 1
        past = sequences.item[max(sequences.offsets[user], row - 8) : row]
        alone = model(torch.from_numpy(past)[None] + 1)[0, -1]
        torch.testing.assert_close(hidden[row], alone, rtol=1e-4, atol=1e-5)


def test_metrics_by_hand():
    ranks = np.array([0, 2, 9, 10])
    assert recall(ranks).tolist() == [1, 1, 1, 0]
    assert ndcg(ranks) == pytest.approx([1, 0.5, 1 / np.log2(11), 0])
    assert metrics(ranks) == {
        "recall_at_10": 0.75, "ndcg_at_10": pytest.approx((1.5 + 1 / np.log2(11)) / 4), "n": 4}


def test_snapshots_read_the_past_and_predict_the_future(data):
    sequences = Sequences.of(data.events, USERS)
    fold = Fold.of(data.events, USERS, ITEMS)
    reference, _ = train_reference(fold, replace(SETTINGS.fit, epochs=1), 8)
    fused, _ = train_fused(fold, torch.randn(ITEMS, 4), replace(SETTINGS.fit, epochs=1), 8)
    rows = draw(sequences, 10, np.random.default_rng(0))
    part = after(sequences, rows, 8, span=5)
    batch = batch_of(sequences, part, reference, fused, 4)
    for at, row in enumerate(rows):
        user = np.searchsorted(sequences.offsets, row, "right") - 1
        low, high = sequences.offsets[user], sequences.offsets[user + 1]
        assert row > low
        past = sequences.item[max(low, row - 4) : row].tolist()
        assert [item for item in batch.histories[at] if item >= 0] == past
        assert batch.rows[batch.user.numpy() == at].tolist() == list(range(row, min(row + 5, high)))
        read = sequences.item[part.start[at] : row]
        torch.testing.assert_close(
            batch.user_hidden[at], reference(torch.from_numpy(read)[None] + 1)[0, -1], rtol=1e-4, atol=1e-5)
    begin = sequences.offsets[:-1] + 3
    starts = regular(sequences, begin, 4)
    assert set(starts - np.repeat(begin, 3)) == {0, 4, 8}


def test_a_fit_runs_and_reports_all_stages(fitted, data):
    result, _, calls = fitted
    assert tuple(dict.fromkeys(call[0] for call in calls)) == STAGES
    for stage in STAGES:
        done = [(call[1], call[2]) for call in calls if call[0] == stage]
        assert all(0 < at <= total for at, total in done)
    assert result.min_history >= 1
    assert result.epsilon in EPSILONS
    assert sum(map(len, result.margins)) > 0
    assert result.metrics["knowledge_nll"] <= result.metrics["knowledge_nll_without_knowledge"] + 1e-6
    assert all(np.isfinite(value) for value in (*result.metrics.values(), *result.evidence.values()))


def test_serving_gives_the_fitted_scores(fitted, data, llm, tmp_path):
    result, cache, _ = fitted
    registry = Registry(tmp_path)
    with registry.publish("v1") as folder:
        result.ranking.save(folder, data.items, data.texts, result.knowledge)
        (folder / "calibration.json").write_text("{}")
        write_card(folder, Card(model_version="v1", created_at=0, data_hash="", settings={}, split_time=0, files={}))
    artifact = registry.open("v1")
    ranking, knowledge = RankingModel.load(artifact), load_knowledge(artifact, llm)
    histories = [[1, 2, 3], [4]]
    vectors = knowledge.generate(ranking.user_hidden(histories), np.array([[1, 2, 3], [4, -1, -1]]), cache, llm).vectors
    expected = result.knowledge.generate(
        result.ranking.user_hidden(histories), np.array([[1, 2, 3], [4, -1, -1]]), cache, llm).vectors
    np.testing.assert_allclose(vectors, expected, rtol=1e-5, atol=1e-6)
    batch = RankBatch(histories, [[], []], [UserKnowledge(each) for each in vectors], [[(1, 2)], []])
    torch.testing.assert_close(ranking.rank(batch).fused_logp, result.ranking.rank(batch).fused_logp)
    llm.model_id, name = "another", llm.model_id
    with pytest.raises(ArtifactError, match="FRESHET_LLM_NAME"):
        load_knowledge(artifact, llm)
    llm.model_id = name


def test_user_vectors_that_add_nothing_are_switched_off(fitted, data, llm, tmp_path, monkeypatch):
    kept, cache, _ = fitted
    assert kept.parts[-1].part == "user_vectors"
    assert kept.parts[-1].used
    assert kept.knowledge is not None
    monkeypatch.setattr("models.systems.lwgr.source.THROUGH_LLM", 16)
    settings = replace(SETTINGS, fit=replace(SETTINGS.fit, epochs=2, knowledge_epochs=1, parts="auto"))
    made = fit(data, split(data, 0.9)[0], settings, llm, cache)
    vectors, features = made.parts[-1], made.parts[-2]
    assert (vectors.part, features.part) == ("user_vectors", "features")
    assert not vectors.used
    assert made.knowledge is None
    assert vectors.events > 0
    assert 0 < features.calls <= len(data.texts)
    made.save(tmp_path, data.items, data.texts)
    assert not (tmp_path / "knowledge.safetensors").exists()
    assert made.ranking.everyone == any(part.used for part in made.parts[1:-1])


def test_harmful_knowledge_is_not_used(data, llm, fitted, monkeypatch):
    _, cache, _ = fitted
    monkeypatch.setattr("models.systems.lwgr.source.THROUGH_LLM", 16)
    monkeypatch.setattr("models.knowledge.judging.JUDGED", 50)
    monkeypatch.setattr("models.knowledge.training.LEARNING_RATE", 30.0)  # ruins everything it trains
    fold = Fold.of(data.events, USERS, ITEMS)
    fit_settings = replace(SETTINGS.fit, epochs=3, knowledge_epochs=1)
    reference, _ = train_reference(fold, fit_settings, 8)
    fused, _ = train_fused(fold, torch.randn(ITEMS, 4), fit_settings, 8)
    knowledge = KnowledgeModel.create(fit_settings, llm)
    source = CodebookSource(knowledge, cache, llm, SETTINGS.llm.history)
    composition = Composed(fused, reference, source, fused.attention)
    found = train_knowledge(composition, fold, TrainingPlan(1, PrimalDual(), trains_backbone=False, seed=1))
    assert found["epoch"] == 0
    assert (fused.attention.out.weight == 0).all()


def test_calibration_on_known_figures():
    rng = np.random.default_rng(0)
    m = 3000
    ranks = np.full((m, len(EPSILONS)), 9)
    length = rng.integers(1, 40, m)
    ranks[:, 3] = 0  # best at EPSILONS[3]
    ranks[length < 6, 3] = 50  # but harmful to short histories
    gains = np.zeros((m, len(EPSILONS)))
    done = ScoredEvents(np.arange(m), length, length, rng.normal(0, 0.5, m), ranks, gains, gains[:, 0])
    assert calibrate_epsilon(done)[0] == EPSILONS[3]
    assert calibrate_min_history(done, EPSILONS[3])[0] == 6


def test_the_scale_fits_the_held_out_events(data):
    fold = Fold.of(data.events, USERS, ITEMS)
    scorer, found = train_reference(fold, replace(SETTINGS.fit, epochs=3), 8)
    before = training.validate(scorer, fold)
    assert before["nll"] == pytest.approx(found["nll"], abs=1e-4)
    with torch.no_grad():
        scorer.scale.mul_(2.0)
    assert training.temper(scorer, fold) < training.validate(scorer, fold)["nll"] + 1e-6
    after = training.validate(scorer, fold)
    assert float(scorer.scale) < 2 * found["scale"]
    assert after["ndcg_at_10"] == before["ndcg_at_10"]
    assert float(extend(scorer, fold, SETTINGS.fit).scale) == float(scorer.scale)


def test_of_radii_with_nearly_all_of_the_gain_the_one_that_loses_the_fewest_hits():
    m = 1000
    ranks = np.full((m, len(EPSILONS)), 20)
    ranks[:400, 0] = 5  # the reference's hits
    for column in range(1, len(EPSILONS)):
        ranks[:400, column] = np.where(np.arange(400) < 4 * column, 30, 5)
        ranks[400 : 400 + (60, 300)[column > 2], column] = 0
    gains = np.zeros((m, len(EPSILONS)))
    done = ScoredEvents(np.arange(m), np.arange(m), np.arange(m), gains[:, 0], ranks, gains, gains[:, 0])
    radius, found = calibrate_epsilon(done)
    assert [found[f"hits_lost_epsilon_{epsilon:g}"] for epsilon in EPSILONS] == pytest.approx(
        [0.01 * column for column in range(len(EPSILONS))])
    assert radius == EPSILONS[3]  # larger radii gain as much and lose more
    assert found["hits_lost"] == pytest.approx(0.03)
    ranks[:400, 1:] = 30  # even the smallest radius loses every hit, and yet the gain is large
    ranks[400:, 1:] = 0
    assert calibrate_epsilon(done)[0] == EPSILONS[1]
    ranks[400:, 1:] = 20  # nothing gained: the reference
    assert calibrate_epsilon(done)[0] == 0


def test_the_radius_is_the_best_with_few_enough_harmed_users():
    """A thousand users with two events each; a wider radius improves ranks and harms more users."""
    user = np.repeat(np.arange(1000), 2)
    ranks = np.repeat(np.maximum(0, 6 - np.arange(len(EPSILONS)))[None], 2000, 0)
    gains = np.full((2000, len(EPSILONS)), 0.3)
    for column in range(1, len(EPSILONS)):
        worse = user < 100 * min(column, 5)  # a hundred users more with every radius, five hundred at most
        gains[worse, column] = np.where(np.arange(2000) % 2, 0.2, -0.9)[worse]  # on average −0.35
    gains[1998, 1:] = -0.2  # the user's other event is good, so no harm on average
    done = ScoredEvents(user, user, user, gains[:, -1], ranks, gains, gains[:, -1])
    assert calibrate_epsilon(done, harm=1.0)[0] == EPSILONS[6]  # larger radii are no better
    radius, found = calibrate_epsilon(done, harm=0.5)
    assert radius == EPSILONS[2]  # two of five
    assert calibrate_epsilon(done, harm=0.41)[0] == EPSILONS[1]  # two of five, but not significantly
    assert found[f"harmed_epsilon_{EPSILONS[-1]:g}"] == found["harmed_unbounded"] == 0.5
    assert found[f"harmed_epsilon_{EPSILONS[2]:g}"] == 0.2
    assert calibrate_epsilon(done, harm=0.0)[0] == 0.0


def test_margins_are_grouped_by_user_in_order():
    user = np.array([1, 0, 1, 2, 0])
    done = ScoredEvents(user, user, user, np.array([1.0, 2.0, 3.0, 4.0, 5.0]), np.zeros((5, len(EPSILONS)), np.int64),
                  np.zeros((5, len(EPSILONS))), np.zeros(5))
    assert [part.tolist() for part in margins_by_user(done)] == [[2.0, 5.0], [1.0, 3.0], [4.0]]


def test_radius_zero_ranks_like_the_reference(data):
    fold = Fold.of(data.events, USERS, ITEMS)
    small = replace(SETTINGS.fit, epochs=2)
    reference, _ = train_reference(fold, small, 8)
    fused, _ = train_fused(fold, torch.randn(ITEMS, 4), small, 8)
    done = score_events(
        fold.sequences, fold.begin, Reference.plain(reference), fused, None, SETTINGS.llm, limit=10**6, span=4)
    held = int((fold.sequences.offsets[1:] - np.maximum(fold.begin, fold.sequences.offsets[:-1] + 1)).clip(0).sum())
    assert len(done.margin) == held
    rows, hidden = hidden_before(reference, fold.sequences, fold.begin, 8)
    assert training.validate(reference, fold)["n"] == len(rows) >= held
    assert done.ranks.shape == (held, len(EPSILONS))
    assert hidden.shape == (len(rows), 16)
