from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from models.language import sentences
from models.language.sentences import SentenceEncoder, encoded, pool
from schemas.errors import FreshetError

SPECIAL = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
PIECES = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *"abcdefghijklmnopqrstuvwxyz[]"]


def save(folder: Path, modules: dict[str, tuple[str, dict[str, object]]] | None = None, seed: int = 0) -> Path:
    """Write a random encoder of letters; `modules` maps a folder to a type and its configuration."""
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(PIECES), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        initializer_range=0.5)
    BertModel(config).save_pretrained(folder)
    backend = Tokenizer(models.WordLevel({piece: at for at, piece in enumerate(PIECES)}, unk_token=PIECES[3]))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIAL).save_pretrained(folder)
    if modules is not None:
        (folder / "modules.json").write_text(json.dumps([
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
            *({"path": path, "type": f"sentence_transformers.models.{kind}"} for path, (kind, _) in modules.items())]))
        for path, (_, about) in modules.items():
            (folder / path).mkdir()
            (folder / path / "config.json").write_text(json.dumps(about))
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> SentenceEncoder:
    torch.set_num_threads(1)
    return SentenceEncoder.load(str(save(tmp_path_factory.mktemp("encoder"))), "cpu")


@pytest.fixture(scope="module")
def packaged() -> SentenceEncoder:
    torch.set_num_threads(1)
    return SentenceEncoder.load(device="cpu")


def test_the_packaged_encoder_knows_which_texts_are_alike(packaged: SentenceEncoder) -> None:
    near, far = ["Moisturizing hand cream with shea butter", "Shea lotion for dry hands"], "Electric guitar strings"
    found = packaged.encode([*near, far])
    assert found.shape == (3, 384)
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-5)
    alike, other = found[0] @ found[1], found[0] @ found[2]
    assert alike > 0.6
    assert other < 0.2


def test_vectors_are_those_that_sentence_transformers_publishes(packaged: SentenceEncoder) -> None:
    # cosines on the model's page: "That is a happy person" to these three
    found = packaged.encode([
        "That is a happy person", "That is a happy dog", "That is a very happy person", "Today is a sunny day"])
    np.testing.assert_allclose(found[0] @ found[1:].T, [0.6946, 0.9429, 0.2569], atol=2e-4)


def test_rows_follow_the_texts_whatever_their_length_and_batch(
    tiny: SentenceEncoder, monkeypatch: pytest.MonkeyPatch,
) -> None:
    texts = ["soap", "a", "the long title of a thing that has many letters", "", "soap", " \n", "bath salt", "z" * 9000]
    alone = np.concatenate([tiny.encode([text]) for text in texts])
    monkeypatch.setattr(sentences, "TOKENS_PER_BATCH", 40)
    together = tiny.encode(texts)
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), [1, 1, 1, 0, 1, 0, 1, 1], atol=1e-5)
    assert tiny.encode([]).shape == (0, tiny.dim)


def test_names_of_special_tokens_and_control_characters_are_plain_text(tiny: SentenceEncoder) -> None:
    ids = tiny._tokenizer(["a[SEP]b"], split_special_tokens=True).input_ids[0]
    assert ids.count(PIECES.index("[SEP]")) == 1
    np.testing.assert_array_equal(tiny.encode(["a\x1b\u202e  b"]), tiny.encode(["a b"]))


def test_each_pooling_is_what_its_name_says() -> None:
    states = torch.tensor([[[1.0, -4.0], [3.0, -2.0], [9.0, 9.0]], [[2.0, 2.0], [4.0, 6.0], [6.0, 1.0]]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    for kind, expected in {
        "cls": [[1.0, -4.0], [2.0, 2.0]], "mean": [[2.0, -3.0], [4.0, 3.0]], "max": [[3.0, -2.0], [6.0, 6.0]],
        "lasttoken": [[3.0, -2.0], [6.0, 1.0]],
        "mean_sqrt_len_tokens": [[4 / 2**0.5, -6 / 2**0.5], [12 / 3**0.5, 9 / 3**0.5]],
    }.items():
        torch.testing.assert_close(pool(states, mask, kind), torch.tensor(expected))


def test_pooling_and_dense_layers_are_taken_from_the_folder(tiny: SentenceEncoder, tmp_path: Path) -> None:
    folder = save(tmp_path / "model", {
        "1_Pooling": ("Pooling", {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}),
        "2_Dense": ("Dense", {"in_features": 16, "out_features": 5, "bias": True,
                              "activation_function": "torch.nn.modules.activation.Tanh"}),
        "3_Normalize": ("Normalize", {})})
    layer = nn.Linear(16, 5)
    save_file({f"linear.{name}": value for name, value in layer.state_dict().items()},
              folder / "2_Dense" / "model.safetensors")
    model = SentenceEncoder.load(str(folder), "cpu")
    assert model.dim == 5
    ids = torch.tensor(model._tokenizer(["soap"]).input_ids)
    with torch.no_grad():
        first = model._model(input_ids=ids).last_hidden_state[:, 0]
        expected = nn.functional.normalize(torch.tanh(layer(first)), dim=1).numpy()
    np.testing.assert_allclose(model.encode(["soap"]), expected, atol=1e-5)
    assert model.fingerprint != tiny.fingerprint


def test_several_poolings_stand_side_by_side(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", {"1_Pooling": ("Pooling", {"pooling_mode": ["cls", "mean"]})})
    model = SentenceEncoder.load(str(folder), "cpu")
    assert model.encode(["soap"]).shape == (1, 32)


@pytest.mark.parametrize(("modules", "why"), [
    ({"1_Pooling": ("Pooling", {"pooling_mode_weightedmean_tokens": True})}, "pools by"),
    ({"1_CNN": ("CNN", {})}, "has a layer CNN"),
    ({"1_Dense": ("Dense", {"in_features": 16, "out_features": 2})}, "cannot be loaded"),  # no weights
])
def test_what_cannot_be_applied_is_refused_in_one_line(
    tmp_path: Path, modules: dict[str, tuple[str, dict[str, object]]], why: str,
) -> None:
    folder = save(tmp_path / "model", modules)
    with pytest.raises(FreshetError, match=why) as caught:
        SentenceEncoder.load(str(folder), "cpu")
    assert "FRESHET_ITEMS_ENCODER" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_model_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(FreshetError, match="FRESHET_ITEMS_ENCODER") as caught:
        SentenceEncoder.load(str(tmp_path / "nowhere"), "cpu")
    assert "\n" not in str(caught.value)


class TestCache:
    def test_a_catalogue_is_encoded_once(self, tiny: SentenceEncoder, tmp_path: Path) -> None:
        texts = ["soap", "", "a longer title", "bath"]
        steps: list[tuple[int, int]] = []
        first = encoded(tiny, texts, tmp_path, lambda *at: steps.append(at))
        assert steps[-1] == (4, 4)
        steps.clear()
        np.testing.assert_array_equal(encoded(tiny, texts, tmp_path, lambda *at: steps.append(at)), first)
        assert steps == []
        np.testing.assert_allclose(first, tiny.encode(texts), atol=1e-5)
        assert [path.suffix for path in tmp_path.glob("[!.]*")] == [".npy"]

    def test_other_texts_or_another_model_are_another_file(self, tiny: SentenceEncoder, tmp_path: Path) -> None:
        encoded(tiny, ["soap", "ab"], tmp_path / "cache")
        encoded(tiny, ["soapa", "b"], tmp_path / "cache")
        other = SentenceEncoder.load(str(save(tmp_path / "other", seed=1)), "cpu")
        encoded(other, ["soap", "ab"], tmp_path / "cache")
        assert len(list((tmp_path / "cache").glob("[!.]*.npy"))) == 3

    def test_an_interrupted_run_goes_on_where_it_was(
        self, tiny: SentenceEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(sentences, "_KEPT_PER_FILE", 3)
        texts = [letter * (1 + at) for at, letter in enumerate("abcdefgh")]

        def killed(done: int, total: int) -> None:
            if done >= 5:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            encoded(tiny, texts, tmp_path, killed)
        asked: list[str] = []
        spied = tiny.encode
        monkeypatch.setattr(tiny, "encode", lambda texts, step: asked.extend(texts) or spied(texts, step))
        found = encoded(tiny, texts, tmp_path)
        assert sorted(asked) == sorted(texts[3:])
        np.testing.assert_allclose(found, spied(texts), atol=1e-5)
        assert list(tmp_path.glob(".*.f32")) == []


def test_scikit_learn_and_scipy_stay_out_of_memory() -> None:
    code = ("import sys; import models.language.llm, models.language.sentences; "
            "from transformers import AutoModelForCausalLM, BertModel; "
            "sys.exit(sum(name in sys.modules for name in ('sklearn', 'scipy', 'sentence_transformers')))")
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=110).returncode == 0
