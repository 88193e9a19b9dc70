"""Items that come later: which are read, what is stored and announced of them, and what is not done twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from models.evidence.item_knowledge import ItemKnowledge
from schemas.catalogue.update import about
from workers.catalogue.view import Entry
from workers.roles.knowledge.later import FittedItems, LaterReader
from workers.store.embedded.engine import EdgeItems

AXES = {"soap": 0, "scent": 1, "brush": 2, "new": 3}
TEXTS = ["soap one", "scent one", "brush one", "soap two", "soap two soft"]


def encode(texts: Sequence[str]) -> NDArray[np.float32]:
    """A sentence encoder that knows four words."""
    out = np.zeros((len(texts), 4), np.float32)
    for row, text in zip(out, texts, strict=True):
        for word in text.split():
            if word in AXES:
                row[AXES[word]] = 1.0
    return out / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-9)


def fitted(encoder: str = "tiny") -> FittedItems:
    return FittedItems("m1", list("abcde"), ItemKnowledge(TEXTS, None, encode(TEXTS)), encoder)


@pytest.fixture
def store(tmp_path: Path) -> EdgeItems:
    made = EdgeItems(tmp_path / "store", 4)
    made.ensure()
    return made


def reader(of: FittedItems | None = None) -> tuple[LaterReader, list[str]]:
    """Return a reader, and the texts that it encoded."""
    asked: list[str] = []
    return LaterReader(of or fitted(), lambda texts: (asked.extend(texts), encode(texts))[1], lambda: 50.0), asked


def entry(name: str, text: str, version: int = 1_000_000) -> Entry:
    return Entry(name, version, text, text)


def test_only_what_the_fit_did_not_read_is_new() -> None:
    made, _ = reader()
    assert made.new([entry("a", TEXTS[0]), entry("x", ""), Entry.gone("b", 1)]) == []
    assert made.new([entry("a", "soap other"), entry("x", "one"), entry("x", "two", 2)]) == [
        entry("a", "soap other"), entry("x", "two", 2)]
    assert made.new([entry("x", "one"), Entry.gone("x", 2)]) == []


def test_a_new_item_is_stored_and_announced_with_similar_ones(store: EdgeItems) -> None:
    made, asked = reader()
    (update,) = made.read([entry("x", "soap new")], store)
    assert asked == ["soap new"]
    point = store.read(["x"])["x"]
    assert (point.version, point.text, point.encoder, point.model_version) == (1_000_000, "soap new", "tiny", "m1")
    assert (update.version, update.about) == (1_000_000, about("soap new"))
    assert (update.encoder, update.caused_at) == ("tiny", 1.0)
    assert {one.item_id for one in update.similar[:3]} == {"a", "d", "e"}
    assert all(0 < one.score <= 1 for one in update.similar)
    (again,) = made.read([entry("x", "soap new")], store)
    assert again.model_copy(update={"similar": []}) == update.model_copy(update={"similar": []})
    for one, two in zip(again.similar, update.similar, strict=True):  # half precision in the store
        assert one.score == pytest.approx(two.score, abs=2e-3)
    assert asked == ["soap new"]  # not twice


def test_a_changed_text_replaces_the_old_one_and_an_old_record_does_not(store: EdgeItems) -> None:
    made, _ = reader()
    made.read([entry("x", "soap", 5)], store)
    made.read([entry("x", "scent", 9)], store)
    made.read([entry("x", "brush", 7)], store)
    point = store.read(["x"])["x"]
    assert (point.version, point.text) == (9, "scent")
    assert point.vector.tolist() == encode(["scent"])[0].tolist()


def test_another_encoder_reads_what_the_first_one_read(store: EdgeItems) -> None:
    reader()[0].read([entry("x", "soap", 5)], store)
    other, asked = reader(fitted("other"))
    other.read([entry("x", "soap", 5)], store)
    other.read([entry("x", "soap", 5)], store)
    assert asked == ["soap"]
    assert store.read(["x"])["x"].encoder == "other"
    assert store.versions(["x"])["x"] == 6


def test_a_version_without_encodings_announces_by_words() -> None:
    texts = [f"{text} thing" for text in TEXTS]
    of = replace(fitted(), known=ItemKnowledge(texts))
    made, asked = reader(of)
    (update,) = made.read([entry("x", "two pieces of it")], None)
    assert asked == []
    assert update.encoder == ""
    assert {one.item_id for one in update.similar} == {"d", "e"}
