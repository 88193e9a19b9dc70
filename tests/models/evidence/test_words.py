"""Word similarity: rare words count most, common and unique words do not count, and similarity is a cosine."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.evidence.words import add_similarity, weigh_words

torch.set_num_threads(1)
TEXTS = ["Opi Polish, Red", "OPI polish. blue", "", "Ésika crème", "ésika soap"] + [f"thing {i}" for i in range(20)]


def similarity(texts, share=1.0):
    gram = torch.zeros(len(texts), len(texts))
    add_similarity(gram, weigh_words(texts), share)
    return gram


def test_texts_are_similar_by_shared_words():
    found = similarity(TEXTS)
    assert abs(float(found[0, 1]) - 1) < 1e-6  # red and blue occur once and are dropped; the rest is equal
    assert abs(float(found[3, 4]) - 1) < 1e-6  # case folding follows Unicode
    assert float(found[0, 3]) == 0
    assert (found[2] == 0).all()
    assert (found[5:] == 0).all()  # "thing" is in more than a fifth of the texts, numbers in one each


def test_rare_words_count_more():
    texts = ["a b", "a c"] + ["b c"] * 3 + ["x"] * 20
    found = similarity(texts)
    assert found[0, 1] > found[0, 2] > 0


WORDS = st.lists(st.lists(st.sampled_from("abcdefg"), max_size=4).map(" ".join), min_size=1, max_size=30)


@settings(max_examples=50, deadline=None)
@given(WORDS)
def test_similarity_is_a_cosine(texts):
    found = similarity(texts)
    assert torch.allclose(found, found.T, atol=1e-6)
    assert float(found.min()) >= 0
    assert float(found.max()) <= 1 + 1e-6
    diagonal = found.diagonal()
    assert bool(((diagonal - 1).abs() < 1e-5).logical_or(diagonal == 0).all())
    assert torch.allclose(similarity(texts, 2.5), 2.5 * found, atol=1e-5)


def test_texts_are_processed_in_blocks():
    torch.manual_seed(0)
    texts = [f"{int(a)} {int(b)}" for a, b in torch.randint(300, (1500, 2))]
    weights = weigh_words(texts).to_dense()
    assert torch.allclose(similarity(texts), weights @ weights.T, atol=1e-5)
