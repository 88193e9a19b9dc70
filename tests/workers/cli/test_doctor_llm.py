from __future__ import annotations

from pathlib import Path

import pytest

from schemas.errors import FreshetError
from schemas.settings import LlmSettings, Settings
from tests.models import tiny
from workers.cli.doctor import _llm


def test_the_language_model_is_opened_and_read_with(tmp_path: Path) -> None:
    tiny.save(tmp_path / "llm")
    found = _llm(Settings(home=tmp_path, llm=LlmSettings(name=str(tmp_path / "llm"), device="cpu")))
    assert found.state == "ok"
    assert "with a loss of" in found.text
    (tmp_path / "llm" / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(FreshetError, match="cannot be loaded"):
        _llm(Settings(home=tmp_path, llm=LlmSettings(name=str(tmp_path / "llm"), device="cpu")))


def test_nothing_is_fetched_or_unpacked(tmp_path: Path) -> None:
    assert "unpacks" in _llm(Settings(home=tmp_path)).text
    assert "downloaded" in _llm(Settings(home=tmp_path, llm=LlmSettings(name="nobody/nothing"))).text
    assert list(tmp_path.iterdir()) == []
