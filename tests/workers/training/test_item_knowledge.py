from __future__ import annotations

from pathlib import Path

import numpy as np
import orjson
import pytest

from models.data.loading import load_dataset
from models.data.written import PLACE, about
from schemas.settings import ItemSettings, Settings
from tests.models.language.test_sentences import save
from workers.terminal.stages import Stages
from workers.training.item_knowledge import item_knowledge, knowledge_key, written_items


def describe(folder: Path, **texts: str) -> None:
    (folder / PLACE).parent.mkdir(parents=True, exist_ok=True)
    (folder / PLACE).write_bytes(b"\n".join(orjson.dumps(
        {"item_id": item, "text": text, "about": about(f"thing {item}")}) for item, text in texts.items()))


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    folder = tmp_path / "shop"
    folder.mkdir()
    (folder / "events.csv").write_text(
        "user_id,item_id,timestamp\n" + "".join(f"u,{item},160000000{at}\n" for at, item in enumerate("abc")))
    (folder / "items.jsonl").write_bytes(b"\n".join(
        orjson.dumps({"item_id": item, "title": f"thing {item}"}) for item in "abc"))
    return folder


def test_texts_written_and_encoded_come_together_in_row_order(shop: Path, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home", items=ItemSettings(encoder=str(save(tmp_path / "encoder"))))
    describe(shop, b="from the folder", c="from the folder")
    describe(settings.home, c="from describe")
    with Stages() as stages:
        known = item_knowledge(settings, load_dataset(shop), stages)
        assert known.written == ["", "from the folder", "from describe"]
        assert known.encoded is not None
        np.testing.assert_allclose(np.linalg.norm(known.encoded, axis=1), 1, atol=1e-5)
        again = item_knowledge(settings, load_dataset(shop), stages)
    np.testing.assert_array_equal(again.encoded, known.encoded)
    assert len(list((settings.home / "cache" / "sentences").glob("[!.]*.npy"))) == 1


def test_without_encoder_and_writing_there_are_the_texts(shop: Path, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home", items=ItemSettings(encoder="none"))
    with Stages() as stages:
        known = item_knowledge(settings, load_dataset(shop), stages)
    assert (known.texts, known.written, known.encoded) == (["thing a", "thing b", "thing c"], None, None)


def test_the_key_changes_with_encoder_and_writing_alone(shop: Path, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home")
    key = knowledge_key(settings, load_dataset(shop))
    assert knowledge_key(Settings(home=tmp_path / "other"), load_dataset(shop)) == key
    assert knowledge_key(Settings(items=ItemSettings(encoder="none")), load_dataset(shop)) != key
    describe(settings.home, z="of another catalogue")
    assert knowledge_key(settings, load_dataset(shop)) == key
    assert written_items(settings, load_dataset(shop)) is None
    describe(settings.home, a="of this one")
    assert knowledge_key(settings, load_dataset(shop)) != key
