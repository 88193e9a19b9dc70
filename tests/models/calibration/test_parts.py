"""What pays: parts that help are chosen, noise ends at weight 0, and nothing ranks below the reference."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from models.calibration.fused import calibrate_scores
from models.calibration.held_out import UNSEEN, HeldOut, halves
from models.calibration.parts import SEARCHED, searched, within
from models.calibration.reference import best_gain, fit_reference, quality
from models.data.fold import Fold
from models.data.sequences import Sequences
from models.evidence.ease import Ease
from models.evidence.item_knowledge import ItemKnowledge, Parts
from models.evidence.reference import Reference
from models.measuring.metrics import ndcg
from models.scorers.backbone import Backbone
from models.scorers.fusion import FusedScorer
from models.systems.freshet.with_evidence import WithEvidence
from schemas.calibration import table

torch.set_num_threads(1)
N, USERS, LENGTH, MAKES = 96, 700, 7, 12


def worlds(kind, seed=0):
    """Users who stay with two of twelve makes; of "makes", half of the last items are ones that nobody had before."""
    rng = np.random.default_rng(seed)
    items = []
    for user in range(USERS):
        pool = np.flatnonzero(np.isin(np.arange(N) % MAKES, (user % MAKES, (user + 1) % MAKES)))
        old, new = pool[pool < N - 24], pool[pool >= N - 24]
        chosen = rng.permutation(old)[:LENGTH]
        if kind == "makes" and user % 2:
            chosen[-1] = rng.choice(new)
        items.append(chosen)
    sequences = Sequences(np.concatenate(items), np.arange(USERS * LENGTH), np.arange(0, USERS * LENGTH + 1, LENGTH))
    return Fold(sequences, sequences.offsets[1:] - 2, N)


def knowledge(kind, seed=0):
    """Texts and encodings that name the make, or that are noise; what was written adds nothing."""
    rng = np.random.default_rng(seed)
    make = np.arange(N) % MAKES if kind == "makes" else rng.integers(0, MAKES, N)
    encoded = np.eye(MAKES, dtype=np.float32)[make] + rng.normal(0, 0.1, (N, MAKES)).astype(np.float32)
    return ItemKnowledge([f"make {row}x of something" for row in make], ["" for _ in make],
                         encoded / np.linalg.norm(encoded, axis=1, keepdims=True))


def scorers(fold):
    torch.manual_seed(0)
    return (Backbone(N, 8, 1, 2, 10, 0.0).eval(),
            FusedScorer(torch.randn(N, 4), None, N, 8, 1, 2, 10, 0.0).eval())


def calibrated(kind, texts, **more):
    fold = worlds(kind)
    return calibrate_scores(fold, knowledge(texts), *scorers(fold), **more), fold


def test_words_pay_where_they_say_what_people_choose():
    found, _ = calibrated("makes", "makes")
    assert [part.part for part in found.parts] == ["behaviour", "words", "encoder", "features"]
    words = found.parts[1]
    assert words.used
    assert words.pays
    assert found.weights.affinity.parts.words == words.weight > 0
    assert found.metrics["fused_ndcg_at_10_chosen"] > found.metrics["fused_ndcg_at_10_reference"] + 0.05
    assert table(found.parts)[2].endswith("yes")


def test_written_words_take_the_place_of_the_texts_own():
    """Texts name the make of seven items in eight; what was written names it of all."""
    fold = worlds("makes")
    make = np.arange(N) % MAKES
    texts = [f"make {row}x of something" if item % 8 else "something" for item, row in enumerate(make)]
    known = ItemKnowledge(texts, [f"makes-{row}x" for row in make])
    found = calibrate_scores(fold, known, *scorers(fold))
    parts = {part.part: part for part in found.parts}
    assert parts["words"].used
    assert parts["written"].used
    assert parts["written"].weight >= parts["words"].weight > 0
    assert parts["written"].calls == N
    assert found.weights.affinity.parts == Parts(written=parts["written"].weight)


@pytest.mark.parametrize("seed", range(3))
def test_noise_ends_at_zero_and_costs_nothing(seed):
    """The texts say nothing of what people choose: a fixed weight would cost, and the search gives none."""
    fold = worlds("chance", seed)
    noise = knowledge("noise", seed)
    found = calibrate_scores(fold, noise, *scorers(fold), seed=seed)
    assert not any(part.used for part in found.parts[1:] if part.part != "features")
    assert found.weights.affinity.parts == Parts()
    assert "no" in table(found.parts)[2].split()[-1] or "holds 0" in table(found.parts)[2]
    events = HeldOut.of(fold.sequences, found.judging, (scorers(fold)[0],), 1000)
    fixed = Ease.fit(fold.training(), N, noise, Parts(words=2.4))
    reference = found.reference
    ours = quality(events.ranks((1.0,), events.evidence(reference.affinity), (reference.gain,))[0])
    assert best_gain(events, (1.0,), events.evidence(fixed))[0] < ours


def test_the_choice_is_never_below_the_reference():
    for kind, texts, use in (("makes", "makes", "auto"), ("chance", "noise", "auto"), ("chance", "noise", "on")):
        found, _ = calibrated(kind, texts, use=use)
        assert found.metrics["fused_ndcg_at_10_chosen"] >= found.metrics["fused_ndcg_at_10_reference"]


def test_without_parts_the_fused_scores_are_the_reference():
    found, fold = calibrated("chance", "noise", parts=())
    backbone, fused = scorers(fold)
    assert found.weights.share == 1.0
    found.weights.put(fused)
    model = WithEvidence(fused, replace(found.reference, backbone=backbone), None, None, False, found.weights.affinity)
    rows = np.arange(3, 60, LENGTH)
    logits, given = torch.randn(len(rows), N), torch.randn(len(rows), N)
    has = torch.zeros(len(rows), dtype=torch.bool)
    served = model.served(logits, given, fold.sequences, rows, has, None)
    histories = np.stack([[-1] * 7 + fold.sequences.item[row - 3 : row].tolist() for row in rows])
    torch.testing.assert_close(served, found.reference.weigh(given, histories))


def test_the_reference_is_the_better_of_both_and_more():
    fold = worlds("makes")
    backbone, _ = scorers(fold)
    reference, found = fit_reference(fold, backbone, Ease.fit(fold.training(), N))
    assert reference.gain > 0
    assert found["reference_ndcg_at_10_chosen"] > found["transformer_ndcg_at_10"] + 0.05
    events = HeldOut.of(fold.sequences, halves(fold.begin, fold.sequences.offsets)[0], (backbone,), 4000)
    evidence = events.evidence(reference.affinity)
    likely = [loss(events, evidence, reference.gain, factor * reference.temperature) for factor in (0.9, 1.0, 1.1)]
    assert likely[1] <= min(likely) + 1e-4  # no other temperature is likelier
    assert likely[1] == pytest.approx(found["reference_nll_chosen"], abs=1e-3)


def loss(events, evidence, gain, temperature):
    scores = events.scores[0].double().scatter_add(1, evidence.items.clamp(min=0), gain * evidence.weights.double())
    return float(torch.nn.functional.cross_entropy(temperature * scores, events.target))


def test_a_gain_at_the_end_of_the_grid_is_not_the_last_word():
    """A transformer that is loud and wrong: only a gain beyond the grid overrules it."""
    fold = worlds("chance")
    backbone, _ = scorers(fold)
    with torch.no_grad():
        backbone.bias.copy_(torch.randn(N) * 300)
    reference, _ = fit_reference(fold, backbone, Ease.fit(fold.training(), N))
    assert reference.gain > 140
    assert reference.temperature < 0.2


def test_events_are_of_items_that_are_new_to_the_user():
    item = np.array([1, 2, 1, 3, 4, 4, 5, 6])
    sequences = Sequences(item, np.arange(8), np.array([0, 4, 8]))
    events = HeldOut.of(sequences, np.array([0, 5]), (Backbone(8, 8, 1, 2, 10, 0.0).eval(),), 100)
    assert events.target.tolist() == [2, 3, 5, 6]  # without a first event, the second 1 and the second 4
    assert events.user.tolist() == [0, 0, 1, 1]
    assert [row[row >= 0].tolist() for row in events.histories] == [[1], [1, 2, 1], [4, 4], [4, 4, 5]]
    assert [(row == UNSEEN).nonzero().flatten().tolist() for row in events.scores[0]] == [[1], [1, 2], [4], [4, 5]]


def test_scores_fit_into_memory(monkeypatch):
    monkeypatch.setattr("models.calibration.held_out.ROOM", 50 * N)
    fold = worlds("makes")
    assert len(HeldOut.of(fold.sequences, fold.begin, scorers(fold), 4000)) == 50


def test_ranks_are_those_of_the_weighed_scores():
    fold = worlds("makes")
    backbone, fused = scorers(fold)
    events = HeldOut.of(fold.sequences, fold.begin, (backbone, fused), 300)
    affinity = Ease.fit(fold.training(), N)
    evidence = events.evidence(affinity)
    for gain, ranks in zip((0.0, 3.0), events.ranks((0.3, 0.7), evidence, (0.0, 3.0)), strict=True):
        scores = 0.3 * events.scores[0] + 0.7 * events.scores[1]
        scores = scores.scatter_add(1, evidence.items.clamp(min=0), gain * evidence.weights)
        own = scores.gather(1, events.target[:, None])
        np.testing.assert_array_equal(ranks, ((scores >= own).sum(1) - 1).numpy())
    assert quality(ranks) == pytest.approx(float(ndcg(ranks).mean()))


def test_halves_share_no_user():
    fold = worlds("chance")
    first, second = halves(fold.begin, fold.sequences.offsets, 3)
    end = fold.sequences.offsets[1:]
    assert ((first < end) != (second < end)).all()
    assert 0.4 < (first < end).mean() < 0.6


def test_a_large_catalogue_is_searched_in_part():
    counts = np.arange(SEARCHED + 2000)
    counts[:800] = 0
    known = ItemKnowledge(["text" if row % 2 else "" for row in range(len(counts))])
    items = searched(counts, known)
    assert searched(counts[:SEARCHED], known.at(range(SEARCHED))) is None
    assert len(items) <= SEARCHED
    assert set(items[counts[items] == 0] % 2) == {1}  # unseen ones only if something is known of them
    assert len(counts) - 1 in items
    scores = torch.zeros(3, 10), torch.ones(3, 10)
    events = HeldOut(np.arange(3), torch.tensor([1, 5, 9]), np.full((3, 2), -1), scores)
    part = within(events, np.array([1, 9]))
    assert (part.user.tolist(), part.target.tolist()) == ([0, 2], [1, 9])
    assert (part.scores[0][0] == UNSEEN).sum() == 8


def test_a_plain_reference_is_its_transformer():
    backbone = Backbone(8, 8, 1, 2, 10, 0.0)
    logits = torch.randn(2, 8)
    assert torch.equal(Reference.plain(backbone).weigh(logits, np.array([[1, -1], [2, 3]])), logits)
