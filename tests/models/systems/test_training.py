import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from models.evidence.ease import Ease
from models.evidence.reference import Reference
from models.knowledge import training
from models.knowledge.composition import Composed
from models.knowledge.objectives import FixedPenalty, Objective, PrimalDual
from models.knowledge.sources import moments_at
from models.language.item_cache import ItemCache
from models.measuring.metrics import ndcg
from models.measuring.outcomes import summary
from models.measuring.protocols import FRESH, FROZEN, leave_one_out, moments, stream_time
from models.scorers.fusion import KnowledgeAttention
from models.scorers.ranks import hidden_before
from models.scorers.snapshots import before
from models.serving.bake import ranking_model
from models.serving.requests import RankBatch, UserKnowledge
from models.systems.context import Context
from models.systems.kar.written import KnowledgeScorer
from models.systems.table import CONTROLS, SYSTEMS, system_named
from models.systems.training import train
from schemas.errors import FreshetError
from schemas.settings import FitSettings, LlmSettings, Settings, StateSettings
from tests.models import tiny
from tests.models.planted import chains

SETTINGS = replace(
    Settings(), state=StateSettings(history=10), llm=LlmSettings(batch=8, history=4, item_tokens=8, device="cpu"),
    fit=FitSettings(dim=16, layers=1, dropout=0.1, epochs=12, knowledge_epochs=2, instructions=3, codes=4, parts="on",
                    seed=1))


@pytest.fixture(scope="module")
def data():
    return chains()


@pytest.fixture(scope="module")
def language(data, tmp_path_factory):
    llm = tiny.load(tmp_path_factory.mktemp("llm"))
    cache = ItemCache.build(llm, data.texts, tmp_path_factory.mktemp("cache"), None, SETTINGS.llm.item_tokens)
    return lambda: (llm, cache)


@pytest.fixture(scope="module")
def context(data, language, tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setattr(training, "FEW", 48)
    patch.setattr("models.knowledge.judging.JUDGED", 150)
    patch.setattr("models.systems.lwgr.source.THROUGH_LLM", 48)
    settings = replace(SETTINGS, home=tmp_path_factory.mktemp("home"))
    yield Context(data, stream_time(data), settings, language)
    patch.undo()


def popularity(split):
    """NDCG@10 of ranking by training counts, without seen items."""
    counts = np.bincount(split.fold.sequences.item, minlength=split.fold.n_items)
    ranks = []
    for row in split.rows():
        user = np.searchsorted(split.test.offsets, row, "right") - 1
        seen = split.test.item[split.test.offsets[user] : row]
        score = counts.astype(float)
        score[seen] = -1
        ranks.append(int((score >= score[split.test.item[row]]).sum()) - 1)
    return float(ndcg(np.array(ranks)).mean())


def test_parts_in_the_table_exist(context):
    from models.systems.registry import FUSIONS, OBJECTIVES, SOURCES

    for name, system in SYSTEMS.items():
        assert name == system.name
        assert set(system.controls()) <= set(CONTROLS)
        if system.has_knowledge:
            assert (system.instruction, system.extraction, system.adaptor) in SOURCES
            assert system.fusion in FUSIONS
            assert system.objective in OBJECTIVES
    with pytest.raises(FreshetError, match="there are dense"):
        system_named("nothing")
    with pytest.raises(FreshetError, match="it has extra-steps"):
        system_named("dense", "shuffled-knowledge")


@pytest.mark.parametrize("protocol", [leave_one_out, stream_time])
def test_dense_learns_transitions(data, language, protocol):
    split = protocol(data)
    trained = train(SYSTEMS["dense"], None, Context(data, split, SETTINGS, language))
    outcome = trained.rank(FRESH)
    assert outcome.reference is None
    assert (outcome.ranks.rows == split.rows()).all()
    assert summary(outcome, split)["ndcg_at_10"] > popularity(split) + 0.3


@pytest.mark.slow
@pytest.mark.parametrize("control", ["extra-steps", "text-init"])
def test_dense_controls_learn_and_have_a_reference(context, control):
    outcome = train(SYSTEMS["dense"], control, context).rank(FRESH)
    assert outcome.reference is not None
    assert (outcome.reference.rows == outcome.ranks.rows).all()
    assert not np.array_equal(outcome.ranks.logp, outcome.reference.logp)
    assert summary(outcome, context.split)["ndcg_at_10"] > popularity(context.split) + 0.2


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, system in SYSTEMS.items() if system.has_knowledge])
def test_systems_with_knowledge_learn(context, name, monkeypatch):
    for module in ("grasp.holistic", "kar.written"):
        monkeypatch.setattr(f"models.systems.{module}.FROZEN", 64)
    trained = train(SYSTEMS[name], None, context)
    fresh = trained.rank(FRESH)
    assert summary(fresh, context.split)["ndcg_at_10"] > popularity(context.split) + 0.2
    assert 0 <= summary(fresh, context.split)["harmed_fraction"] <= 1
    history = trained.about.get("history", [])
    assert history or name == "freshet"  # trained like `freshet fit`
    assert [entry["epoch"] for entry in history] == list(range(len(history)))
    assert all(np.isfinite(value) for entry in history for value in entry.values())
    frozen = trained.rank(FROZEN)
    assert (frozen.ranks.rows == fresh.ranks.rows).all()


def composed(context, control=False):
    from models.systems.registry import FUSIONS, parallel_codebooks

    reference = context.backbone("sasrec")[0]
    return Composed(copy.deepcopy(reference), reference, parallel_codebooks(context), FUSIONS["start-attention"](
        SETTINGS.fit), control)


def test_a_composition_starts_at_its_reference(context):
    model = composed(context)
    split = context.split
    before = model.rank(split.test, split.begin, FRESH, rows=split.rows())
    plain = context.rank(context.backbone("sasrec")[0])
    np.testing.assert_allclose(before.logp, plain.logp, atol=1e-5)
    inside = model.rank(split.test, split.begin, FRESH, epsilon=0.0, rows=split.rows())
    np.testing.assert_allclose(inside.logp, plain.logp, atol=1e-5)


def test_knowledge_of_the_requested_age_is_used(context):
    model = composed(context)
    torch.manual_seed(0)
    assert isinstance(model.fusion, KnowledgeAttention)
    torch.nn.init.normal_(model.fusion.out.weight)
    split = context.split
    fresh = model.rank(split.test, split.begin, FRESH)
    frozen = model.rank(split.test, split.begin, FROZEN)
    first = np.isin(fresh.rows, split.begin)  # at a user's first later event both have the same knowledge
    np.testing.assert_allclose(fresh.logp[first], frozen.logp[first], atol=1e-4)
    assert (np.abs(fresh.logp[~first] - frozen.logp[~first]) > 1e-4).mean() > 0.5
    model.shuffled = True
    shuffled = model.rank(split.test, split.begin, FRESH)
    assert (np.abs(fresh.logp - shuffled.logp) > 1e-4).mean() > 0.5


def test_training_keeps_the_reference_and_is_reproducible(context):
    found = []
    for _ in range(2):
        model = composed(context)
        before = {name: weight.clone() for name, weight in model.reference.state_dict().items()}
        about = training.train(
            model, context.split.fold, training.TrainingPlan(1, PrimalDual(), seed=3, none_is_an_epoch=False))
        for name, weight in model.reference.state_dict().items():
            assert torch.equal(weight, before[name])
        found.append((about["nll"], model.fusion.out.weight.clone()))
        assert model.fusion.out.weight.abs().sum() > 0
    assert found[0][0] == found[1][0]
    assert torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize(("name", "control"), [
    ("kar", None), ("coco", None), ("grasp", None), ("grasp", "softmax-attention"), ("lwgr", None)])
def test_every_weight_of_knowledge_is_trained(context, name, control, monkeypatch):
    """No path is dead: every weight gets a gradient, and those of the kept epoch have moved."""
    from models.systems.registry import FUSIONS, OBJECTIVES, SOURCES

    system, reference = SYSTEMS[name], context.backbone("sasrec")[0]
    monkeypatch.setattr(training, "WEIGHT_DECAY", 0.0)
    source = SOURCES[system.instruction, system.extraction, control or system.adaptor](context)
    backbone = copy.deepcopy(reference)
    if name == "kar":
        torch.manual_seed(0)
        backbone = KnowledgeScorer(
            torch.randn(reference.n_items, source.whiten.width), None, reference.n_items, 16, 1, 2, 10, 0.1)
    source.attach(backbone)
    model = Composed(backbone, reference, source, FUSIONS[system.fusion](SETTINGS.fit))
    shared = "backbone.experts."  # KAR's towers are the scorer's, too
    parts = ("source.", "fusion.", shared)
    ours = {part: weight for part, weight in model.named_parameters() if part.startswith(parts)}
    before = {part: weight.detach().clone() for part, weight in ours.items()}
    reached = set()
    for part, weight in ours.items():
        weight.requires_grad_(True)
        weight.register_hook(lambda gradient, part=part: reached.add(part) if gradient.any() else None)
    training.train(model, context.split.fold, training.TrainingPlan(
        3, OBJECTIVES[system.objective](), seed=1, snapshots=48, none_is_an_epoch=False))
    assert sorted(set(ours) - reached) == []
    still = [part for part, weight in ours.items() if torch.equal(weight, before[part])]
    assert [part for part in still if ".adapter." not in part] == []  # the kept epoch may be before LoRA's first
    assert len({part.split(".")[0] for part in ours}) == 2


def test_the_dual_variable_follows_the_constraint():
    objective = PrimalDual()
    objective.start(0.0)
    assert objective.lagrange == 0  # the policy starts at its reference, so ε_C is unknown
    objective.after_epoch(0.2)
    assert objective.allowed == pytest.approx(0.1)
    before = objective.lagrange
    objective.after_epoch(0.3)
    assert objective.lagrange > before
    for _ in range(20):
        objective.after_epoch(0.0)
    assert objective.lagrange == 0
    fixed = FixedPenalty()
    fixed.after_epoch(9.0)
    assert fixed.lagrange == 1
    assert Objective().log() == {}


@pytest.mark.slow
def test_generative_learns_transitions(context):
    trained = train(SYSTEMS["generative"], None, context)
    outcome = trained.rank(FRESH)
    assert (outcome.ranks.rows == context.split.rows()).all()
    assert summary(outcome, context.split)["harmed_fraction"] is not None
    assert summary(outcome, context.split)["ndcg_at_10"] > popularity(context.split) + 0.2
    assert 0 < trained.about["semantic_ids_utilisation_1"] <= 1


@pytest.mark.slow
@pytest.mark.parametrize("control", SYSTEMS["freshet"].controls())
def test_freshet_has_controls_that_differ(context, control):
    both = [train(SYSTEMS["freshet"], name, context) for name in (None, control)]
    plain, changed = (trained.rank(FRESH) for trained in both)
    # Vectors of a random language model need not help here. What nothing is taken of cannot differ.
    unused = {
        "no-words": not both[0].model.affinity.parts, "shuffled-knowledge": not any(t.about["epoch"] for t in both),
        "fixed-penalty": not any(t.about["epoch"] for t in both)}
    if unused.get(control, False):
        np.testing.assert_array_equal(plain.ranks.logp, changed.ranks.logp)
        return
    assert not np.array_equal(plain.ranks.logp, changed.ranks.logp)
    if control == "no-trust-region":  # the same models without a radius
        assert both[0].about["nll"] == both[1].about["nll"]
        least = int(both[0].about["min_history"])
        split = context.split
        free = both[0].model.rank(split.test, split.begin, FRESH, None, least, None, split.rows())
        np.testing.assert_array_equal(changed.ranks.logp, free.logp)


def test_evidence_is_current_even_if_knowledge_is_old(context):
    model = composed(context)
    from models.systems.freshet.with_evidence import WithEvidence

    affinity = Ease.fit(context.split.fold.training(), context.split.fold.n_items)
    fused = copy.deepcopy(context.backbone("sasrec+text")[0])
    fused.evidence_gain.fill_(3.0)
    fused.evidence_half_life.fill_(4.0)
    fused.reference_share.fill_(0.25)
    behaviour = Reference(model.reference, affinity, 2.0, 0.8)
    model = WithEvidence(fused, behaviour, model.source, fused.attention, False, affinity=affinity)
    split = context.split
    for age in (FRESH, FROZEN):
        ranks = model.rank(split.test, split.begin, age)
        own = moments(split.test, split.begin, ranks.rows, age)
        rows, hidden = hidden_before(fused, split.test, split.begin)
        assert (rows == ranks.rows).all()
        gathered = affinity.evidence(before(split.test, rows, fused.max_len))
        by_behaviour = model.reference.scores(hidden_before(model.reference, split.test, split.begin)[1])
        logits = fused.weigh(fused.scores(hidden), by_behaviour, gathered, torch.zeros(len(rows)))
        logp = logits.log_softmax(-1)[torch.arange(len(rows)), torch.from_numpy(split.test.item[rows])]
        np.testing.assert_allclose(ranks.logp, logp, atol=1e-4)  # attention starts without effect
        known = own > split.test.offsets[np.searchsorted(split.test.offsets, rows, "right") - 1]
        assert not known.all(), "users without knowledge get the evidence, too"
        served = model.rank(split.test, split.begin, age, 0.0)  # at radius 0, everyone gets the reference
        alone = behaviour.weigh(by_behaviour, before(split.test, rows, fused.max_len)).log_softmax(-1)
        np.testing.assert_allclose(served.logp, alone[torch.arange(len(rows)), torch.from_numpy(
            split.test.item[rows])], atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, system in SYSTEMS.items() if system.has_knowledge])
def test_the_ranking_worker_gives_the_measured_scores(context, name, monkeypatch):
    for module in ("grasp.holistic", "kar.written"):
        monkeypatch.setattr(f"models.systems.{module}.FROZEN", 64)
    trained = train(SYSTEMS[name], None, context)
    model = trained.model
    torch.nn.init.normal_(model.fusion.out.weight, std=0.3)  # so that knowledge matters
    served = ranking_model(model, name, SYSTEMS[name].fusion)
    split = context.split
    measured = model.rank(split.test, split.begin, FRESH)  # without a trust region, which the worker applies
    every = measured.rows - split.test.offsets[np.searchsorted(split.test.offsets, measured.rows, "right") - 1]
    chosen = np.flatnonzero(every > 1)[:12]
    rows = measured.rows[chosen]
    known = moments_at(split.test, rows, hidden_at(model.reference, split, rows), model.source.items)
    vectors = model.source(known)
    histories = [split.test.item[row - length : row].tolist() for row, length in zip(rows, known.length, strict=True)]
    gathered = served.affinity.evidence(before(split.test, rows, served.max_len))
    batch = RankBatch(histories, [[] for _ in rows], [
        UserKnowledge(vectors[at], gathered.items[at].numpy(), gathered.weights[at].numpy())
        for at in range(len(rows))], [[(length, int(split.test.item[row]))] for row, length in zip(
            rows, known.length.tolist(), strict=True)])
    # The papers' rows are served against their own transformer, Freshet's against transformer and closed form.
    ref = context.reference_ranks() if name == "freshet" else context.rank(model.reference)
    margins = [margin[0] for margin in served.rank(batch).margins]
    np.testing.assert_allclose(margins, measured.logp[chosen] - ref.logp[np.isin(ref.rows, rows)], atol=1e-3)


def hidden_at(model, split, rows):
    found, hidden = hidden_before(model, split.test, split.test.offsets[:-1])
    return hidden[torch.from_numpy(np.searchsorted(found, rows))]
