"""Items that come after the fit: what the closed form says of them, against a fit that had them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from models.data.sequences import Sequences
from models.evidence.ease import ClosedForm, Ease
from models.evidence.item_knowledge import ItemKnowledge, Parts
from models.evidence.later import Described, LaterItems

N, NEW, DIM = 40, 3, 6
PARTS = Parts(encoder=0.8)


def encodings(seed: int = 0) -> np.ndarray:
    rows = np.abs(np.random.default_rng(seed).normal(size=(N + NEW, DIM))).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def alone() -> Sequences:
    """Users with one item each: the matrix of pairs is diagonal."""
    items = np.repeat(np.arange(N), np.random.default_rng(1).integers(1, 9, N))
    return Sequences(items, np.arange(len(items)), np.arange(len(items) + 1))


def dense(ease: Ease) -> torch.Tensor:
    n = len(ease.neighbours)
    return torch.zeros(n, n).scatter_add_(1, ease.neighbours.long(), ease.weights.float())


def fitted(n: int, encoded: np.ndarray) -> Ease:
    return ClosedForm(alone(), n, ItemKnowledge([""] * n, None, encoded[:n])).solve(PARTS)


def later(encoded: np.ndarray, ease: Ease | None = None) -> LaterItems:
    return LaterItems(ease or fitted(N, encoded), ItemKnowledge([""] * N, None, encoded[:N]))


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("batches", [[3], [1, 1, 1], [2, 1]])
def test_new_items_get_the_weights_that_another_fit_gives_them(batches: list[int], stored: bool) -> None:
    encoded = encodings()
    base = fitted(N, encoded)
    if stored:  # as a version's files have it
        base = replace(base, neighbours=base.neighbours.int(), weights=base.weights.half())
    items, at = later(encoded, base), N
    for size in batches:
        rows = list(range(at, at + size))
        found = items.put(rows, Described([""] * size, encoded[rows]))
        at += size
    grown, whole = dense(found), dense(fitted(N + NEW, encoded))
    assert grown.shape == whole.shape
    for part in (slice(0, N), slice(N, None)):
        for other in (slice(N, None), slice(0, N)):
            if part == other == slice(0, N):
                continue
            one, two = grown[part, other], whole[part, other]
            kept = one != 0
            assert kept.float().mean() > 0.6  # an item keeps as many neighbours as before: the weakest have no place
            # An item that came earlier in the same or another batch was solved without the later ones.
            assert float((one - two)[kept].abs().max()) < 0.02
            assert float((one - two)[kept].abs().mean()) < 0.004


def test_one_item_is_solved_exactly() -> None:
    encoded = encodings()
    grown = dense(later(encoded).put([N], Described([""], encoded[[N]])))
    whole = dense(fitted(N + 1, encoded))
    for one, two in ((grown[:N, N], whole[:N, N]), (grown[N, :N], whole[N, :N])):
        assert torch.allclose(one[one != 0], two[one != 0], atol=2e-3)  # half precision, of encodings as well


def test_a_changed_text_replaces_the_old_one_and_items_with_users_keep_what_the_fit_says() -> None:
    encoded = encodings()
    items = later(encoded)
    items.put([N], Described([""], encoded[[N]]))
    again = dense(items.put([N], Described([""], encoded[[N + 1]])))
    once = dense(later(encoded).put([N], Described([""], encoded[[N + 1]])))
    both = (again[:, N] != 0) & (once[:, N] != 0)
    assert both[:N].float().mean() > 0.7
    assert torch.allclose(again[both, N], once[both, N], atol=2e-3)
    assert torch.allclose(again[N], once[N], atol=2e-3)
    before = dense(items.grow(N + 1))
    assert torch.equal(dense(items.put([3], Described([""], encoded[[N + 2]]))), before)


def test_an_item_without_a_text_has_no_neighbours() -> None:
    encoded = encodings()
    found = dense(later(encoded).put([N], Described([""], np.zeros((1, DIM), np.float32))))
    assert not found[N].any()
    assert not found[:, N].any()


def test_words_say_who_is_alike() -> None:
    kinds = ["shoe", "hat", "cap", "sock", "belt", "coat", "scarf", "glove"] * 5
    texts = [f"{kind} thing {n % 5}" for n, kind in enumerate(kinds)]
    known = ItemKnowledge(texts)
    base = ClosedForm(alone(), N, known).solve(Parts(words=1.0))
    items = LaterItems(base, known)
    found = dense(items.put([N, N + 1], Described(["shoe unheard of", "nothing known"])))
    strongest = found[:N, N].topk(5).indices.tolist()
    assert {texts[row].split()[0] for row in strongest} == {"shoe"}
    assert float(found[N, strongest].min()) > 0
    assert not found[:, N + 1].any()


def test_a_closed_form_of_an_earlier_release_takes_no_later_items_and_still_grows() -> None:
    encoded = encodings()
    old = replace(fitted(N, encoded), diagonal=None, users=None)
    items = later(encoded, old)
    assert not items.active
    found = items.put([N], Described([""], encoded[[N]]))
    assert torch.equal(dense(found)[:N, :N], dense(old))
    assert not dense(found)[N].any()


def test_rows_of_a_table_in_use_grow_beyond_their_room() -> None:
    encoded = encodings()
    items = later(encoded)
    for size in (N + 1, N + 70, N + 300):
        found = items.grow(size)
        assert len(found.neighbours) == len(found.weights) == size
        assert not found.weights[N:].any()
        assert torch.equal(found.weights[:N], fitted(N, encoded).weights)
