"""Models that are built in another way are refused in one sentence; they ended in a traceback."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BloomConfig,
    FalconConfig,
    GPT2Config,
    GPTNeoXConfig,
    MambaConfig,
)

from models.language.llm import LanguageModel
from schemas.errors import FreshetError
from schemas.settings import LlmSettings
from tests.models import tiny

SMALL = {"vocab_size": 120, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
KINDS = {
    "GPT-2": GPT2Config(vocab_size=120, n_embd=32, n_layer=2, n_head=4, n_positions=128),
    "BLOOM": BloomConfig(vocab_size=120, hidden_size=32, n_layer=2, n_head=4),
    "Falcon": FalconConfig(**SMALL),
    "Mamba": MambaConfig(vocab_size=120, hidden_size=32, num_hidden_layers=2, state_size=4),
    "BERT": BertConfig(**SMALL, intermediate_size=48, is_decoder=True),
    "GPT-NeoX": GPTNeoXConfig(**SMALL, intermediate_size=48),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_model_that_cannot_be_continued_is_refused_by_its_class(tmp_path: Path, name: str) -> None:
    tiny.save(tmp_path)  # its tokenizer
    for file in tmp_path.glob("*.safetensors"):
        file.unlink()
    model = AutoModelForCausalLM.from_config(KINDS[name])
    model.save_pretrained(tmp_path)
    with pytest.raises(FreshetError, match=rf"is a {type(model).__name__}\. Freshet continues decoders") as refused:
        LanguageModel.load(LlmSettings(name=str(tmp_path), device="cpu"), tmp_path)
    assert "\n" not in str(refused.value)
