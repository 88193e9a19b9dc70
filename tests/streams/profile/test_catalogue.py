"""Vectors of items that come after the fit."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from streams.profile.catalogue import ItemVectors

FITTED = ["a", "b", "c"]
NAMES = st.sampled_from([*FITTED, "x", "y", "z"])
SIMILAR = st.dictionaries(NAMES, st.dictionaries(NAMES, st.floats(0, 1), max_size=3), max_size=4)


def vectors() -> ItemVectors:
    return ItemVectors(FITTED, np.array([[2.0, 0.0], [0.0, 3.0], [0.0, 0.0]]))


def test_a_later_item_has_the_mean_of_similar_ones() -> None:
    known = vectors()
    known.add({"x": {"a": 0.6, "b": 0.8}, "y": {"b": 0.5}})
    assert known.vectors[known.rows["x"]].tolist() == np.array([0.6, 0.8], np.float32).tolist()
    assert known.vectors[known.rows["y"]].tolist() == [0.0, 1.0]
    known.add({"x": {"a": 0.2}})  # another text
    assert known.vectors[known.rows["x"]].tolist() == [1.0, 0.0]


@given(st.lists(SIMILAR, max_size=4))
def test_items_of_the_fit_stay_and_every_row_is_one_items(batches: list[dict[str, dict[str, float]]]) -> None:
    known, before = vectors(), vectors()
    for batch in batches:
        known.add(batch)
    assert known.unknown == before.unknown
    assert np.array_equal(known.vectors[: len(before.vectors)], before.vectors)
    assert {item: known.rows[item] for item in FITTED} == before.rows
    rows = list(known.rows.values())
    assert len(set(rows)) == len(rows)
    assert known.unknown not in rows
    assert len(known.vectors) == len(rows) + 1
    lengths = np.linalg.norm(known.vectors, axis=1)
    assert np.isfinite(lengths).all()
    assert (lengths <= 1.001).all()
    for item in set(known.rows) - set(FITTED):
        assert any(item in batch and set(batch[item]) & set(FITTED) for batch in batches)
