from __future__ import annotations

from pathlib import Path

import numpy as np
import orjson
import pytest

from schemas.artifacts import Artifact, Card, Registry, write_card
from schemas.errors import ArtifactError
from workers.store.item_files import VECTORS, WRITTEN, ItemPoints, save_items, written_texts

ITEMS = ["a", "b", "c"]


def publish(
    home: Path, version: str = "m1", written: list[str] | None = None, encoded: np.ndarray | None = None,
    created_at: float = 1000.0,
) -> Artifact:
    registry = Registry(home)
    with registry.publish(version) as folder:
        (folder / "items.json").write_bytes(orjson.dumps(ITEMS))
        (folder / "texts.json").write_bytes(orjson.dumps([f"title {item}" for item in ITEMS]))
        save_items(folder, written, encoded, "tiny")
        write_card(folder, Card(
            model_version=version, created_at=created_at, data_hash="", settings={}, split_time=0.0, files={}))
    return registry.open(version)


def encoding(*rows: tuple[float, ...]) -> np.ndarray:
    return np.array(rows, np.float32)


def test_points_are_those_of_the_files_without_items_that_have_no_text(tmp_path: Path) -> None:
    artifact = publish(tmp_path, written=["soft", "", "old"], encoded=encoding((1, 0), (0, 0), (0, 1)))
    points = ItemPoints(artifact, "tiny")
    assert (len(points), points.dim) == (2, 2)
    first, last = points[:]
    assert (first.item_id, first.text, first.written, first.encoder) == ("a", "title a", "soft", "tiny")
    assert (last.item_id, last.version, last.model_version, last.fitted_at) == ("c", 1_000_000, "m1", 1000.0)
    np.testing.assert_array_equal(last.vector, [0, 1])
    assert points[1].item_id == "c"
    assert written_texts(artifact) == ["soft", "", "old"]


def test_a_version_without_item_knowledge_has_none(tmp_path: Path) -> None:
    artifact = publish(tmp_path, written=["", "", ""])
    assert not ItemPoints(artifact)
    assert written_texts(artifact) == []
    assert not {VECTORS, WRITTEN} & set(artifact.card.files)


def test_files_of_other_items_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="other items"):
        ItemPoints(publish(tmp_path, encoded=encoding((1, 0), (0, 1))))
    with pytest.raises(ArtifactError, match="other items"):
        ItemPoints(publish(tmp_path, "m2", written=["x"], encoded=encoding((1, 0), (0, 1), (1, 0))))
