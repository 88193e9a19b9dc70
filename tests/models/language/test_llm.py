from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from models.language.attention import Blank
from models.language.llm import LanguageModel, plain
from schemas.errors import FreshetError
from schemas.settings import LlmSettings
from tests.models import tiny


@pytest.fixture(scope="module", params=tiny.KINDS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple:
    """Our model, and transformers' with its own attention and the same weights."""
    folder = tmp_path_factory.mktemp(request.param)
    ours = tiny.load(folder, request.param)
    theirs = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    return ours, theirs


def run(llm: LanguageModel, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return llm.run(llm.embed(ids), torch.arange(ids.shape[1]).expand(ids.shape), Blank(llm.device))


def test_forward_equals_transformers(pair: tuple) -> None:
    ours, theirs = pair
    ids = torch.randint(4, 80, (2, 4 * tiny.WINDOW), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs.get_decoder()(input_ids=ids).last_hidden_state
    torch.testing.assert_close(run(ours, ids), expected, rtol=1e-4, atol=1e-5)


def test_loss_equals_transformers(pair: tuple) -> None:
    ours, theirs = pair
    ids = torch.tensor([ours.tokenizer("some text of any kind").input_ids])
    with torch.no_grad():
        expected = float(theirs(input_ids=ids, labels=ids).loss)
    assert ours.loss("some text of any kind") == pytest.approx(expected, rel=1e-4)


def test_first_layers_only(tmp_path: Path) -> None:
    cut = tiny.load(tmp_path / "a", depth=2 / 3)
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "a").eval()
    ids = torch.randint(4, 80, (1, 9))
    with torch.no_grad():
        middle = whole.model(input_ids=ids, output_hidden_states=True).hidden_states[2]
        expected = whole.model.norm(middle)
    assert cut.layers == 2
    torch.testing.assert_close(run(cut, ids), expected, rtol=1e-4, atol=1e-5)
    assert cut.fingerprint != tiny.load(tmp_path / "b").fingerprint


def test_weights_are_frozen_and_described(tmp_path: Path) -> None:
    llm = tiny.load(tmp_path)
    assert (llm.hidden_size, llm.layers, llm.key_heads, llm.head_size) == (32, 3, 2, 8)
    assert llm.model_id == str(tmp_path)
    assert not any(weight.requires_grad for weight in llm.causal.parameters())
    assert llm.embedding_norm > 0


def test_the_fingerprint_depends_on_the_weights(tmp_path: Path) -> None:
    first = tiny.load(tmp_path)
    again = LanguageModel.load(LlmSettings(name=str(tmp_path), depth=1.0), tmp_path)
    assert again.fingerprint == first.fingerprint
    half = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)  # as on a GPU
    assert LanguageModel(half, again.tokenizer, "elsewhere").fingerprint == first.fingerprint
    assert tiny.load(tmp_path, seed=1).fingerprint != first.fingerprint


def test_special_tokens_in_a_text_are_plain_text(tmp_path: Path) -> None:
    llm = tiny.load(tmp_path)
    hostile = "a<eos>b\x00\x1b[2J\n\r<bos>c"
    ids = llm.tokenize([hostile, "", "x" * 1_000_000], 40)
    assert not {0, 1, 2} & set(ids[0])  # no <pad>, <bos>, <eos>
    assert llm.tokenizer.convert_ids_to_tokens(ids[0][:6]) == list("a<eos>")
    assert ids[1] == []
    assert len(ids[2]) == 40
    assert llm.tokenizer("<eos>").input_ids == [1, 2]  # the tokenizer is unchanged
    assert plain("a\tb\u202ec\n\n d") == "a b c d"


def test_a_very_high_loss_is_rejected(tmp_path: Path) -> None:
    tiny.save(tmp_path, vocabulary=5000)  # ln 5000 = 8.5, as with the broken Gemma tokenizer
    with pytest.raises(FreshetError, match=r"nats per token.*FRESHET_LLM_NAME"):
        LanguageModel.load(LlmSettings(name=str(tmp_path), depth=1.0), tmp_path)


def test_error_for_a_missing_folder_has_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(FreshetError, match=r"cannot be loaded.*gemma-3-270m"):
        LanguageModel.load(LlmSettings(name=str(tmp_path / "none")), tmp_path)


def test_error_without_network_has_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FreshetError, match="needs the network"):
        LanguageModel.load(LlmSettings(name="nobody/no-such-model"), tmp_path)


def test_error_for_damaged_weights_has_a_remedy(tmp_path: Path) -> None:
    tiny.save(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    with pytest.raises(FreshetError, match="cannot be loaded"):
        LanguageModel.load(LlmSettings(name=str(tmp_path), depth=1.0), tmp_path)


def test_unknown_device_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FreshetError, match="is no device"):
        LanguageModel.load(LlmSettings(name=str(tmp_path), device="abacus"), tmp_path)
