import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.compute.pca import condense
from models.generative.scorer import Generative
from models.generative.semantic_ids import SemanticIds, Trie, codes_for, kmeans, quantise


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 60), distinct=st.integers(1, 60), blank=st.integers(0, 3), codes=st.integers(2, 9),
       seed=st.integers(0, 99))
def test_ids_are_unique_and_the_trie_accepts_only_them(n, distinct, blank, codes, seed):
    rng = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(distinct, 6, generator=rng)[torch.randint(distinct, (n,), generator=rng)]
    embeddings[:blank] = 0
    ids = quantise(embeddings, levels=2, codes=codes, seed=seed)
    assert len(torch.unique(ids.codes, dim=0)) == n
    assert (ids.codes < torch.tensor(ids.sizes)).all()
    trie = Trie(ids)
    for row, word in enumerate(ids.codes.tolist()):
        assert trie.item(word) == row
    words = {tuple(word) for word in ids.codes.tolist()}
    generator = np.random.default_rng(seed)
    for _ in range(50):
        word = [int(generator.integers(size + 1)) for size in ids.sizes]
        assert (trie.item(word) is not None) == (tuple(word) in words)
    assert int(trie.leaves[0][0]) == n
    assert all(int(leaves.sum()) == n for leaves in trie.leaves)


def test_similar_items_share_prefixes_and_no_code_is_dead():
    torch.manual_seed(0)
    centres = 10 * torch.randn(8, 16)
    group = torch.arange(200) % 8
    ids = quantise(centres[group] + 0.1 * torch.randn(200, 16), levels=2, codes=8)
    for cluster in range(8):
        assert len(torch.unique(ids.codes[group == cluster, 0])) == 1
    assert ids.about["utilisation_1"] == pytest.approx(1.0)
    assert ids.about["utilisation_2"] > 0.5


@pytest.mark.parametrize("seed", range(3))
def test_leading_components_use_every_level_and_all_components_do_not(seed):
    torch.manual_seed(seed)
    wide = condense(torch.randn(600, 640))
    about, whole = (quantise(wide[:, :width], codes=32, seed=seed).about for width in (32, 128))
    assert min(about[f"utilisation_{level}"] for level in (1, 2, 3)) > 0.6
    assert about["collided"] < 0.05
    assert whole["utilisation_3"] < 0.3  # the reason for the setting
    assert whole["collided"] > 0.2


def test_empty_centres_are_reset():
    points = torch.cat([torch.zeros(50, 2), torch.tensor([[9.0, 9.0], [-9.0, 9.0], [9.0, -9.0]])])
    for seed in range(5):
        _, code, _ = kmeans(points, 4, torch.Generator().manual_seed(seed))
        assert len(torch.unique(code)) == 4
    same, code, placed = kmeans(torch.ones(5, 2), 3, torch.Generator().manual_seed(0))
    assert torch.isfinite(same).all()
    assert placed > 0
    assert (code < 3).all()


def test_number_of_codes_grows_with_the_catalogue():
    assert [codes_for(n) for n in (1, 30, 12_101, 10**7)] == [2, 8, 256, 256]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    ids = quantise(torch.randn(40, 6)[torch.arange(40) % 33], levels=2, codes=5)
    model = Generative(ids, 16, 1, 2, 6, 0.0).eval()
    for head in model.heads:
        torch.nn.init.normal_(head.weight)
    return model


def test_probabilities_of_the_catalogue_sum_to_one(model):
    hidden = model(torch.randint(0, 41, (3, 5)))[:, -1]
    torch.testing.assert_close(model.scores(hidden).exp().sum(1), torch.ones(3), rtol=1e-4, atol=1e-4)


def test_wide_beams_are_exact_and_never_leave_the_catalogue(model):
    hidden = model(torch.randint(0, 41, (3, 5)))[:, -1]
    scores = model.scores(hidden)
    seen = (torch.tensor([0, 0, 2]), torch.tensor([int(scores[0].argmax()), 7, 9]))
    items, logp = model.beam(hidden, seen, width=64)
    scores[seen] = -torch.inf
    for row in range(3):
        there = items[row][torch.isfinite(logp[row])].tolist()
        expected = scores[row].argsort(descending=True)[: int(torch.isfinite(scores[row]).sum())].tolist()
        assert there == expected
        torch.testing.assert_close(logp[row][: len(there)], scores[row][there], rtol=1e-4, atol=1e-4)
    assert (items[~torch.isfinite(logp)] == -1).all()
    narrow, logp = model.beam(hidden, seen, width=4)
    assert narrow.shape == (3, 4)
    assert ((narrow >= 0) & (narrow < 40))[torch.isfinite(logp)].all()


def test_a_catalogue_of_one_item():
    ids = quantise(torch.zeros(1, 4))
    assert isinstance(ids, SemanticIds)
    model = Generative(ids, 8, 1, 2, 3, 0.0).eval()
    items, logp = model.beam(model(torch.ones(1, 1, dtype=torch.int64))[:, -1], (torch.zeros(0).long(),) * 2, 3)
    assert items[0, 0] == 0
    assert logp[0, 0] == pytest.approx(0.0)


def test_the_decoder_reads_the_history_up_to_the_event(model):
    tokens = torch.randint(1, 41, (1, 6))
    states = model(tokens)
    assert states.shape == (1, 7, model.width)
    items = torch.arange(5)
    found = model.log_probability(states[:, 4], items)
    later = tokens.clone()
    later[0, 4:] = 1
    torch.testing.assert_close(model.log_probability(model(later)[:, 4], items), found)  # nothing of what follows
    alone = states[:, 4].unflatten(1, (-1, model.dim)).clone()
    alone[:, :-1] = 0.0  # as if the decoder saw only the state after the history
    assert (model.log_probability(alone.flatten(1), items) - found).abs().max() > 1e-6


def test_words_of_one_moment_share_its_states(model):
    states, items = model(torch.randint(0, 41, (3, 5)))[:, -1], torch.arange(12)
    together = model.log_probability(states, items)
    alone = torch.cat([model.log_probability(states[at // 4][None], items[at : at + 1]) for at in range(12)])
    torch.testing.assert_close(together, alone)
