"""A user's text matches items by shared words and by the meaning of its encoding, and becomes evidence."""

import numpy as np
import pytest
import torch

from models.evidence.user_text import ItemTexts, as_evidence

torch.set_num_threads(1)
TEXTS = ["red nail polish", "blue nail polish", "hair shampoo", "hair conditioner", "", "soap"] + [
    f"thing {n}" for n in range(24)]
MEANT = np.zeros((len(TEXTS), 3), np.float32)
MEANT[0], MEANT[1], MEANT[2], MEANT[5] = [1, 0, 0], [0.8, 0.6, 0], [0, 1, 0], [0, -1, 0]


def test_items_that_share_rare_words_with_the_text_match():
    found = ItemTexts.of(TEXTS).similarity(["Polish!", "hair thing", ""])
    assert found.shape == (3, len(TEXTS))
    assert found[0].topk(2).indices.sort().values.tolist() == [0, 1]
    assert (found[0, 2:] == 0).all()
    assert found[1].topk(2).indices.sort().values.tolist() == [2, 3]  # "thing" is in most texts and does not count
    assert (found[2] == 0).all()


def test_words_are_weighted_by_the_catalogue_whatever_the_texts_are():
    items = ItemTexts.of(TEXTS)
    alone, together = items.similarity(["nail hair"]), items.similarity(["nail hair", "nail", "nail", "hair"])
    assert torch.equal(alone[0], together[0])
    # a catalogue text matches itself with 1, and no match is larger
    assert abs(float(items.similarity(["blue nail polish"])[0, 1]) - 1) < 1e-6


def test_meaning_is_the_cosine_cubed_without_opposites():
    items = ItemTexts.of(TEXTS, MEANT)
    found = items.similarity(["unknown"], np.array([[1, 0, 0]], np.float32))
    assert found[0, :2].tolist() == pytest.approx([1, 0.8**3])
    opposite = items.similarity(["unknown"], np.array([[0, 1, 0]], np.float32))
    assert opposite[0, 2] == 1
    assert opposite[0, 5] == 0


def test_many_texts_are_scored_in_blocks():
    items = ItemTexts.of(TEXTS, MEANT)
    texts = [TEXTS[row % len(TEXTS)] for row in range(1200)]
    encoded = np.stack([MEANT[row % len(TEXTS)] for row in range(1200)])
    found = items.similarity(texts, encoded)
    for row in (0, 511, 512, 1199):
        assert torch.allclose(found[row], items.similarity([texts[row]], encoded[row : row + 1])[0])


def test_a_text_without_its_encoding_is_refused():
    with pytest.raises(ValueError, match="every text of a user needs one"):
        ItemTexts.of(TEXTS, MEANT).similarity(["polish"])
    with pytest.raises(ValueError, match="2 encodings of 30 item texts"):
        ItemTexts.of(TEXTS, MEANT[:2])


def test_the_largest_matches_become_evidence():
    found = as_evidence(torch.tensor([[0.5, 0.0, 1.25, 0.1], [0.0, 0.0, 0.0, 0.0]]), size=3)
    assert found.items.tolist() == [[2, 0, 3], [-1, -1, -1]]
    assert found.weights[0].tolist() == pytest.approx([1.25, 0.5, 0.1], abs=1e-4)
    assert (found.weights[1] == 0).all()
    assert torch.equal(found.weights, found.weights.half().float())  # any store returns them exactly
