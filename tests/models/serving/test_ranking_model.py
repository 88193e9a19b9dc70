from dataclasses import replace

import numpy as np
import orjson
import pytest
import torch

from models.compute.pca import condense
from models.data.sequences import Sequences
from models.evidence.ease import Ease
from models.evidence.item_knowledge import ItemKnowledge, Parts
from models.evidence.later import Described
from models.evidence.reference import Reference
from models.scorers.backbone import Backbone
from models.scorers.fusion import FusedScorer
from models.serving.ranking_model import RankingModel
from models.serving.requests import RankBatch, UserKnowledge
from models.systems.registry import FUSIONS
from schemas.artifacts import Card, Registry, write_card
from schemas.errors import ArtifactError
from schemas.settings import FitSettings

torch.set_num_threads(1)
N, D = 40, 16


def build(trained=True, affinity=None):
    torch.manual_seed(0)
    shape = {"n_items": N, "dim": D, "layers": 1, "heads": 2, "max_len": 6, "dropout": 0.1}
    reference = Backbone(**shape)
    fresh = torch.arange(N) >= N - 4
    fused = FusedScorer(condense(torch.randn(N, 24), 8).half().float(), fresh, **shape)
    for weight in (*reference.parameters(), *fused.parameters()) if trained else ():
        torch.nn.init.normal_(weight, std=0.3)
    return RankingModel(reference, fused, {"backbone": shape}, affinity)


def knowledge(seed=0, behind=0):
    rng = np.random.default_rng(seed)
    vectors, weights = rng.normal(size=(3, D)).astype(np.float16), rng.normal(size=5).astype(np.float32)
    return UserKnowledge(vectors, rng.permutation(N)[:5], weights, behind)


def batch():
    return RankBatch(
        histories=[[1, 2, 3], [], [4, -1, 5, 6, 7, 8, 9, 10], [11]], seen=[[20], [], [21, -1], []],
        knowledge=[knowledge(1), knowledge(2), knowledge(3), None],
        judged=[[(0, 1), (2, 3), (2, -1)], [], [(0, 4), (2, 5), (3, 6), (8, 12)], [(0, 11)]],
    )


def test_untrained_knowledge_has_no_effect():
    fused = build(trained=False).fused
    tokens = torch.randint(1, N + 1, (2, 5))
    hidden = fused(tokens)
    assert torch.equal(fused.fuse(hidden, torch.randn(2, 3, D)), hidden)
    assert torch.equal(fused.fuse(hidden, None), hidden)


def test_seen_items_are_excluded_and_the_rest_is_a_distribution():
    result = build().rank(batch())
    for logp in (result.ref_logp, result.fused_logp):
        assert logp.shape == (4, N)
        torch.testing.assert_close(logp.logsumexp(1), torch.zeros(4))
        excluded = [set(np.flatnonzero(row == -np.inf).tolist()) for row in logp.numpy()]
        assert excluded == [{1, 2, 3, 20}, set(), {4, 5, 6, 7, 8, 9, 10, 21}, {11}]


def test_items_of_a_history_may_come_again_where_the_request_says_so():
    result = build().rank(replace(batch(), repeats=[True, False, False, True]))
    excluded = [set(np.flatnonzero(row == -np.inf).tolist()) for row in result.fused_logp.numpy()]
    assert excluded == [{20}, set(), {4, 5, 6, 7, 8, 9, 10, 21}, set()]


def test_without_knowledge_scores_equal_the_reference():
    result = build().rank(batch())
    assert torch.equal(result.fused_logp[3], result.ref_logp[3])
    assert not torch.equal(result.fused_logp[0], result.ref_logp[0])
    assert result.margins[3] == [None]


def test_margins_belong_to_the_judged_positions():
    model = build()
    margins = model.rank(batch()).margins
    assert margins[0][2] is None  # unknown item
    # Six of seven known items are read: position 0 precedes the oldest of them; position 2 (one known item) is slot 0.
    assert margins[2][0] is None
    assert [value is None for value in margins[2]] == [True, False, False, False]
    for row, prefix, item, at in ((0, [], 1, 0), (0, [1, 2], 3, 1)):
        alone = model.rank(RankBatch([prefix], [[]], [batch().knowledge[row]], [[(len(prefix), item)]]))
        assert margins[row][at] == pytest.approx(alone.margins[0][0], abs=1e-5)
        tokens = torch.tensor([prefix], dtype=torch.int64) + 1
        vectors = torch.tensor(batch().knowledge[row].vectors)[None].float()
        with torch.no_grad():
            fused = model.fused.scores(model.fused.fuse(model.fused(tokens), vectors)[:, -1:])
            expected = fused.log_softmax(-1) - model.reference.scores(model.reference(tokens)[:, -1:]).log_softmax(-1)
        assert margins[row][at] == pytest.approx(expected[0, 0, item].item(), abs=1e-5)


def test_a_batch_equals_its_rows_one_by_one():
    model, whole = build(), batch()
    together = model.rank(whole)
    for row in range(4):
        alone = model.rank(RankBatch(*([column[row]] for column in (
            whole.histories, whole.seen, whole.knowledge, whole.judged))))
        torch.testing.assert_close(alone.fused_logp[0], together.fused_logp[row], rtol=1e-4, atol=1e-5)


SEQUENCES = Sequences(np.random.default_rng(5).integers(0, N, 300), np.arange(300), np.arange(0, 301, 10))


def with_evidence():
    model = build(affinity=Ease.fit(SEQUENCES, N))
    model.fused.evidence_gain.fill_(3.0)
    model.fused.evidence_half_life.fill_(2.0)
    return model


def test_current_evidence_equals_that_of_new_knowledge():
    model, whole = with_evidence(), batch()
    found = model.rank(replace(whole, current_evidence=True))

    def now(row, prefix):
        gathered = model.affinity.evidence(torch.tensor([[-1, *prefix]]))
        known = UserKnowledge(whole.knowledge[row].vectors, gathered.items[0].numpy(), gathered.weights[0].numpy())
        return model.rank(RankBatch([prefix], [whole.seen[row]], [known], [[(len(prefix), 30)]]))

    for row, history in ((0, [1, 2, 3]), (1, [])):
        torch.testing.assert_close(found.fused_logp[row], now(row, history).fused_logp[0], rtol=1e-4, atol=1e-5)
    judged = replace(whole, judged=[[(0, 30), (2, 30), (3, 30)], [], [(3, 30)], []], current_evidence=True)
    margins = model.rank(judged).margins
    for at, prefix in ((0, []), (1, [1, 2]), (2, [1, 2, 3])):
        assert margins[0][at] == pytest.approx(now(0, prefix).margins[0][0], abs=1e-5)
    # The oldest of seven items is neither read nor part of the evidence.
    assert margins[2][0] == pytest.approx(now(2, [5]).margins[0][0], abs=1e-5)
    stale = model.rank(whole)
    assert not torch.allclose(found.fused_logp[0], stale.fused_logp[0])
    assert torch.equal(found.fused_logp[3], found.ref_logp[3]), "a user without knowledge gets no evidence either"


def test_without_a_table_of_item_pairs_stored_evidence_is_used():
    model = build()
    model.fused.evidence_gain.fill_(3.0)
    current = model.rank(replace(batch(), current_evidence=True))
    torch.testing.assert_close(current.fused_logp, model.rank(batch()).fused_logp)


def test_an_empty_batch_gives_an_empty_result():
    result = build().rank(RankBatch([], [], [], []))
    assert result.fused_logp.shape == (0, N)
    assert result.margins == []


def with_behaviour(everyone):
    model = with_evidence()
    behaviour = Reference(model.reference, Ease.fit(SEQUENCES, N), 2.0, 0.7)
    return RankingModel(behaviour, model.fused, {**model.config, "everyone": everyone}, model.affinity)


def test_the_reference_is_transformer_and_closed_form():
    model, whole = with_behaviour(False), replace(batch(), current_evidence=True)
    found = model.rank(whole)
    plain = with_evidence().rank(whole)
    assert torch.equal(found.fused_logp[:3], plain.fused_logp[:3])
    assert not torch.allclose(found.ref_logp, plain.ref_logp)
    assert torch.equal(found.fused_logp[3], found.ref_logp[3])
    tokens = torch.tensor([[2, 3, 4]])
    with torch.no_grad():
        scores = model.behaviour.weigh(model.reference.scores(model.reference(tokens)[:, -1]), np.array([[1, 2, 3]]))
    scores[0, [1, 2, 3, 20]] = -torch.inf
    torch.testing.assert_close(found.ref_logp[0], scores.log_softmax(1)[0], rtol=1e-4, atol=1e-5)
    alone = with_behaviour(False).rank(RankBatch(
        [[1, 2]], [[]], [whole.knowledge[0]], [[(2, 3)]], current_evidence=True))
    assert found.margins[0][1] == pytest.approx(alone.margins[0][0], abs=1e-5)


def test_item_knowledge_is_for_everyone():
    model, whole = with_behaviour(True), replace(batch(), current_evidence=True)
    found, before = model.rank(whole), with_behaviour(False).rank(whole)
    torch.testing.assert_close(found.fused_logp[:3], before.fused_logp[:3], rtol=1e-4, atol=1e-5)
    assert torch.equal(found.ref_logp, before.ref_logp)
    assert not torch.allclose(found.fused_logp[3], found.ref_logp[3])
    assert found.margins == before.margins
    stored = model.rank(batch())  # stored evidence is for users with knowledge; the others have none stored
    torch.testing.assert_close(stored.fused_logp[3], found.fused_logp[3], rtol=1e-4, atol=1e-5)


def test_fused_scores_with_everything_off_are_the_reference():
    model = with_behaviour(True)
    model.affinity = model.behaviour.affinity
    model.fused.reference_share.fill_(1.0)
    model.fused.evidence_gain.fill_(model.behaviour.gain)
    model.fused.temperature.fill_(model.behaviour.temperature)
    found = model.rank(replace(batch(), current_evidence=True))
    torch.testing.assert_close(found.fused_logp, found.ref_logp)


def test_a_model_of_an_earlier_release_ranks_as_it_did(tmp_path):
    model, registry = with_evidence(), Registry(tmp_path)
    model.fused.attention.earlier = True
    publish(registry, model)
    folder = tmp_path / "models" / "v1"
    card = orjson.loads((folder / "card.json").read_bytes())
    del card["files"]["behaviour.safetensors"]
    (folder / "behaviour.safetensors").unlink()
    (folder / "card.json").write_bytes(orjson.dumps(card))
    loaded = RankingModel.load(registry.open("v1"))
    assert not loaded.everyone
    whole = replace(batch(), current_evidence=True)
    for name in ("ref_logp", "fused_logp"):
        torch.testing.assert_close(
            getattr(loaded.rank(whole), name), getattr(model.rank(whole), name), rtol=1e-2, atol=1e-2)


def test_a_row_of_an_earlier_release_is_refused(tmp_path):
    model, registry = build(), Registry(tmp_path)
    model.config["fusion"] = "gated"
    model.fused.attention = FUSIONS["gated"](FitSettings(dim=D, heads=2))
    publish(registry, model)
    RankingModel.load(registry.open("v1"))
    folder = tmp_path / "models" / "v1"
    card = orjson.loads((folder / "card.json").read_bytes())
    del card["files"]["behaviour.safetensors"]
    (folder / "card.json").write_bytes(orjson.dumps(card))
    with pytest.raises(ArtifactError, match="of an earlier release"):
        RankingModel.load(registry.open("v1"))


def publish(registry, model):
    with registry.publish("v1") as folder:
        model.save(folder, [str(row) for row in range(N)], ["text"] * N)
        (folder / "calibration.json").write_text("{}")
        write_card(folder, Card(model_version="v1", created_at=0, data_hash="", settings={}, split_time=0, files={}))


@pytest.mark.parametrize("model", [build(), with_behaviour(True)])
def test_a_saved_model_ranks_the_same(tmp_path, model):
    registry = Registry(tmp_path)
    publish(registry, model)
    artifact = registry.open("v1")
    assert artifact.items()[5] == "5"
    loaded = RankingModel.load(artifact)
    whole = replace(batch(), current_evidence=True)
    for name in ("ref_logp", "fused_logp"):
        torch.testing.assert_close(getattr(loaded.rank(whole), name), getattr(model.rank(whole), name))
    assert not any(path.suffix in {".pkl", ".pt", ".bin"} for path in artifact.folder.iterdir())


def test_a_model_of_another_shape_is_rejected(tmp_path):
    model, registry = build(), Registry(tmp_path)
    model.config = {**model.config, "backbone": {**model.config["backbone"], "dim": 8}}
    publish(registry, model)
    with pytest.raises(ArtifactError, match="not of this release"):
        RankingModel.load(registry.open("v1"))
    (tmp_path / "models" / "v1" / "config.json").write_bytes(orjson.dumps({}))
    with pytest.raises(ArtifactError, match="hash"):
        registry.open("v1")


def test_dropped_items_are_scored_by_their_text_alone():
    model = build()
    dropped = torch.arange(N) == 7
    vectors, bias = model.fused.item_side(dropped)
    plain, plain_bias = model.fused.item_side()
    expected = model.fused.text_vector(model.fused.text[7]) + model.fused.fresh_vector
    torch.testing.assert_close(vectors[7], expected)
    assert torch.equal(vectors[:7], plain[:7])
    assert bias[7] != plain_bias[7]
    fresh = model.fused.fresh_vector + model.fused.text_vector(model.fused.text[N - 1])
    torch.testing.assert_close(plain[N - 1], fresh)


def test_evidence_is_weighted_by_its_age_at_each_event():
    """Evidence decays: knowledge was younger at an event within the history than it is at the next event."""
    model = build()
    model.fused.evidence_gain.fill_(3.0)
    model.fused.evidence_half_life.fill_(2.0)
    whole = [1, 2, 3]
    both = model.rank(RankBatch([whole], [[]], [knowledge(1, behind=2)], [[(1, 2), (2, 3)]]))
    for place, (prefix, item, age) in enumerate((([1], 2, 0), ([1, 2], 3, 1))):
        alone = model.rank(RankBatch([prefix], [[]], [knowledge(1, behind=age)], [[(len(prefix), item)]]))
        assert both.margins[0][place] == pytest.approx(alone.margins[0][0], abs=1e-5)
    younger = model.rank(RankBatch([whole], [[]], [knowledge(1, behind=0)]))
    assert not torch.allclose(younger.fused_logp, both.fused_logp)


def known_items():
    rng = np.random.default_rng(3)
    encoded = np.abs(rng.normal(size=(N, 6))).astype(np.float32)
    return ItemKnowledge([""] * N, None, encoded / np.linalg.norm(encoded, axis=1, keepdims=True))


def growing():
    rng = np.random.default_rng(0)
    past = Sequences(rng.integers(0, N, 400), np.arange(400), np.arange(0, 401, 10))
    model = build(affinity=Ease.fit(past, N, known_items(), Parts(encoder=1.0)))
    model.fused.evidence_gain.fill_(20.0)
    model.everyone = True
    return model


def test_an_item_that_comes_later_is_ranked_by_its_text_and_changes_no_other_score():
    model = growing()
    asked = RankBatch(histories=[[3], [7, 9]], seen=[[], []], knowledge=[None, None])
    before = model.rank(asked)
    model.grow(N + 2, known_items)
    grown = model.rank(asked)
    assert model.encodes
    assert model.n_items == N + 2
    for old, new in ((before.ref_logp, grown.ref_logp), (before.fused_logp, grown.fused_logp)):
        shift = (old - new[:, :N])[torch.isfinite(old)]
        assert torch.isfinite(new[:, N:]).all()
        assert torch.allclose(shift.view(-1)[:1].expand_as(shift[: N - 1]), shift[: N - 1], atol=1e-4)
    hidden = model.reference(torch.tensor([[4]]))[0, 1]
    fresh, known = model.reference.fresh_vector @ hidden, model.reference.items[8] @ hidden
    assert float(grown.ref_logp[0, N] - grown.ref_logp[0, 8]) == pytest.approx(
        float(fresh + model.reference.fresh_bias - known - model.reference.bias[8]), abs=1e-4)
    # The same text as item 3's, which the first user had.
    model.put([N], Described([""], known_items().encoded[[3]]), [{3: 1.0}])
    put = model.rank(asked)
    assert float(put.fused_logp[0, N] - put.fused_logp[0, N + 1]) > 0.5 + float(
        put.fused_logp[1, N] - put.fused_logp[1, N + 1])
    assert torch.equal(put.ref_logp, grown.ref_logp)  # behaviour has nothing to say of it
    spoken = model.rank(RankBatch(histories=[[N]], seen=[[]], knowledge=[None]))
    assert spoken.fused_logp[0, N] == -torch.inf
    assert float(spoken.fused_logp[0, 3]) > float(spoken.fused_logp[0, torch.isfinite(spoken.fused_logp[0])].median())


def test_a_saved_version_takes_later_items_as_the_one_that_was_saved(tmp_path):
    model = growing()
    registry = Registry(tmp_path)
    with registry.publish("v1") as folder:
        model.save(folder, [str(row) for row in range(N)], [""] * N)
        (folder / "calibration.json").write_text("{}")
        write_card(folder, Card(model_version="v1", created_at=0, data_hash="", settings={}, split_time=0, files={}))
    loaded = RankingModel.load(registry.open("v1"))
    loaded.everyone = True
    asked = RankBatch(histories=[[3, N]], seen=[[]], knowledge=[None])
    for one in (model, loaded):
        one.grow(N + 1, known_items)
        one.put([N], Described([""], known_items().encoded[[5]]), [{5: 1.0}])
    assert torch.allclose(model.rank(asked).fused_logp, loaded.rank(asked).fused_logp, atol=0.05)
