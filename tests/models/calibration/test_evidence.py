"""Calibration of evidence on held-out events: words if they help, no evidence if nothing helps."""

import numpy as np
import pytest
import torch

from models.calibration.evidence import HALF_LIVES, calibrate_evidence
from models.data.sequences import Sequences
from models.evidence.ease import Ease
from models.evidence.item_knowledge import ItemKnowledge, Parts
from models.scorers.backbone import Backbone
from models.scorers.fusion import FusedScorer

torch.set_num_threads(1)
N, USERS, LENGTH = 48, 300, 8
TEXTS = [f"make {item % 12}x of something" for item in range(N)]


def worlds(kind, seed=0):
    """Users who stay with one make ("makes") or choose at random ("chance"); items 36 to 47 appear only at the end."""
    rng = np.random.default_rng(seed)
    items = []
    for user in range(USERS):
        pool = np.flatnonzero(np.arange(N) % 12 == user % 12) if kind == "makes" else np.arange(N)
        old, new = pool[pool < 36], pool[pool >= 36]
        last = rng.choice(new if user % 2 else old)
        items.append([*rng.choice(old, LENGTH - 1), last])
    return Sequences(np.concatenate(items), np.arange(USERS * LENGTH), np.arange(0, USERS * LENGTH + 1, LENGTH))


def calibrated(kind, **more):
    torch.manual_seed(0)
    sequences = worlds(kind)
    begin = sequences.offsets[1:] - 1
    keep = np.arange(USERS * LENGTH) % LENGTH < LENGTH - 1
    past = Sequences(sequences.item[keep], sequences.index[keep], np.arange(0, USERS * (LENGTH - 1) + 1, LENGTH - 1))
    fused = FusedScorer(torch.randn(N, 4), None, N, 8, 1, 2, 10, 0.0).eval()
    reference = Backbone(N, 8, 1, 2, 10, 0.0).eval()
    affinities = [Ease.fit(past, N, ItemKnowledge(TEXTS), Parts(words=words)) for words in (0.0, 0.6)]
    affinity, found = calibrate_evidence(sequences, begin, reference, fused, affinities, **more)
    return affinity, found, fused


def test_words_are_chosen_if_they_help():
    affinity, found, fused = calibrated("makes")
    assert affinity.parts.words == found["evidence_words"] == 0.6
    assert affinity.half_life in HALF_LIVES
    assert float(fused.evidence_gain) == found["evidence_gain"] > 0
    assert found["evidence_ndcg_at_10"] > found["evidence_ndcg_at_10_without"] + 0.2
    assert found["evidence_nll"] < found["evidence_nll_without"]


def test_no_gain_is_chosen_that_lowers_the_likelihood():
    _, found, fused = calibrated("chance")
    assert found["evidence_nll"] <= found["evidence_nll_without"]
    assert float(fused.temperature) == pytest.approx(found["evidence_temperature"])
    assert found["evidence_gain"] <= 2.0  # more would fit noise


def test_without_a_bound_the_reference_is_not_used():
    _, _, fused = calibrated("makes", bounded=False)
    assert float(fused.reference_share) == 0


def test_evidence_of_other_users_gets_no_weight():
    """The shuffled control is calibrated on shuffled evidence, which carries no information."""
    _, found, _ = calibrated("makes", shuffled=True)
    _, own, _ = calibrated("makes")
    assert found["evidence_gain"] <= 2.0
    assert found["evidence_ndcg_at_10"] < own["evidence_ndcg_at_10"] - 0.15


def test_without_events_nothing_changes():
    affinity, found, fused = calibrated("makes", limit=0)
    assert (affinity.parts.words, found) == (0.0, {})
    assert float(fused.evidence_gain) == 0


def test_of_equal_candidates_the_best_within_the_trust_region_wins(monkeypatch):
    """Without a bound, concentrated and spread evidence rank equally; within a bound, the gain decides."""
    from models.calibration import evidence

    seen = {}
    whole = evidence._scored

    def watched(fused, events, evidence, weights, temperatures, radius=None, aged=False):
        found = whole(fused, events, evidence, weights, temperatures, radius, aged)
        if radius is not None:
            seen[weights.gain, weights.share, weights.temperature] = found[0]
        return found

    monkeypatch.setattr(evidence, "_scored", watched)
    _, found, _ = calibrated("makes")
    assert len(seen) > 1
    mine = found["evidence_gain"], found["evidence_reference_share"], found["evidence_temperature"]
    assert seen[mine] == max(seen.values())
