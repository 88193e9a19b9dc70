from __future__ import annotations

from pathlib import Path

from schemas.settings import LlmSettings, Settings
from tests.models import tiny
from workers.terminal.stages import Stages
from workers.writing import local
from workers.writing.describe import provider_of
from workers.writing.prompts import prompt_named


def test_the_language_model_of_the_settings_answers_every_question_once(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(local, "BATCH", 2)
    settings = Settings(
        home=tmp_path / "home", llm=LlmSettings(name=str(tiny.save(tmp_path / "model")), device="cpu"))
    items = prompt_named("items")
    asked = [items.asks(text) for text in ("a soap", "a longer brush", "a comb")]
    with Stages() as stages:
        provider = provider_of(settings, stages)
        found = list(provider.answers(asked))
        again = list(provider.answers(asked))
    assert sorted(answer.key for answer in found) == sorted(question.key for question in asked)
    assert again == found
    assert {answer.model for answer in found} == {settings.llm.name}
    assert all(answer.cost == 0 and answer.read > 100 and answer.final for answer in found)
    assert all(bool(answer.text.strip()) != bool(answer.refused) for answer in found)
    assert provider.cost(1000, 1000) == 0
