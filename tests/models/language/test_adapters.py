from __future__ import annotations

from pathlib import Path

import numpy as np
import orjson
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from models.language import adapters
from models.language.encoding import encode_prefix
from models.language.item_cache import ItemCache
from models.language.llm import LanguageModel
from models.systems.lwgr.knowledge import KnowledgeModel
from schemas.errors import FreshetError
from schemas.settings import FitSettings
from tests.models import tiny


def adapter(folder: Path, base: Path, seed: int = 0, causal: bool = True) -> Path:
    """Save a LoRA adapter with nonzero effect, as a training run with peft would."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base)
    tuned = get_peft_model(
        model if causal else model.get_decoder(), LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    with torch.no_grad():
        for name, weight in tuned.named_parameters():
            if "lora_" in name:
                weight.normal_()
    tuned.save_pretrained(folder)
    return folder


class World:
    """A language model with knowledge of three users."""

    def __init__(self, folder: Path) -> None:
        self.llm: LanguageModel = tiny.load(folder / "llm")
        self.cache = ItemCache.build(self.llm, ["red", "green", "blue"], folder / "items", item_tokens=8)
        torch.manual_seed(0)
        self.model = KnowledgeModel.create(FitSettings(dim=8, codes=4, instructions=2), self.llm)

    def vectors(self) -> np.ndarray:
        return self.model.generate(torch.ones(3, 8), [[0, 1], [1, 2], [-1, -1]], self.cache, self.llm).vectors


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "decoder"])
def test_adapter_applies_to_instructions_only(world: World, tmp_path: Path, causal: bool) -> None:
    plain, prefix = world.vectors(), encode_prefix(world.llm)
    world.llm.load_adapter(adapter(tmp_path / "a", tmp_path / "llm", causal=causal), "a")
    np.testing.assert_array_equal(world.vectors(), plain)  # loaded but not active
    world.llm.use_adapter("a")
    assert np.abs(world.vectors() - plain).max() > 1e-3
    assert torch.equal(encode_prefix(world.llm), prefix)
    world.llm.use_adapter(None)
    np.testing.assert_array_equal(world.vectors(), plain)
    assert not any(weight.requires_grad for weight in world.llm.decoder.parameters())


def test_effect_equals_merged_weights(world: World, tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a", tmp_path / "llm")
    world.llm.load_adapter(folder, "a")
    world.llm.use_adapter("a")
    tuned = world.vectors()
    world.llm.use_adapter(None)
    _, weights = adapters.read(folder)
    scale = LoraConfig(r=2).lora_alpha / 2
    with torch.no_grad():
        for name, layer in world.llm.decoder.named_modules():
            if name.endswith((".q_proj", ".v_proj")):
                a, b = (weights[f"base_model.model.model.{name}.lora_{side}.weight"] for side in "AB")
                layer.base_layer.weight += scale * b @ a
    np.testing.assert_allclose(world.vectors(), tuned, rtol=1e-3, atol=1e-4)


def test_adapters_are_swapped_and_replaced_while_running(world: World, tmp_path: Path) -> None:
    for seed, name in enumerate("ab"):
        world.llm.load_adapter(adapter(tmp_path / name, tmp_path / "llm", seed), name)
    world.llm.use_adapter("a")
    first = world.vectors()
    world.llm.use_adapter("b")
    second = world.vectors()
    assert np.abs(first - second).max() > 1e-3
    world.llm.use_adapter("a")
    np.testing.assert_array_equal(world.vectors(), first)
    world.llm.load_adapter(tmp_path / "b", "a")  # the active name gets new weights
    np.testing.assert_allclose(world.vectors(), second, rtol=1e-5, atol=1e-6)
    assert adapters.names(world.llm.decoder) == {"a", "b"}


def broken(folder: Path, how: str, base: Path) -> Path:
    adapter(folder, base, seed=5)
    weights, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    if how == "torn":
        weights.write_bytes(weights.read_bytes()[:100])
    elif how == "pickle":
        weights.rename(folder / "adapter_model.bin")
    elif how == "no config":
        config.unlink()
    elif how == "not json":
        config.write_text("{")
    elif how == "other layers":
        config.write_bytes(orjson.dumps(orjson.loads(config.read_bytes()) | {"target_modules": ["k_proj"]}))
    elif how == "other rank":
        config.write_bytes(orjson.dumps(orjson.loads(config.read_bytes()) | {"r": 3}))
    elif how == "nan":
        from safetensors.torch import load_file, save_file

        save_file({name: weight * float("nan") for name, weight in load_file(weights).items()}, weights)
    return folder


@pytest.mark.parametrize(
    "how", ["torn", "pickle", "no config", "not json", "other layers", "other rank", "nan", "absent"])
def test_broken_adapter_leaves_the_one_in_use(world: World, tmp_path: Path, how: str) -> None:
    world.llm.load_adapter(adapter(tmp_path / "a", tmp_path / "llm"), "a")
    world.llm.use_adapter("a")
    before = world.vectors()
    bad = tmp_path / "bad" if how == "absent" else broken(tmp_path / "bad", how, tmp_path / "llm")
    for name in ("a", "b"):
        with pytest.raises(FreshetError, match="LoRA adapter"):
            world.llm.load_adapter(bad, name)
        np.testing.assert_array_equal(world.vectors(), before)
    assert adapters.names(world.llm.decoder) == {"a"}
    with pytest.raises(FreshetError, match="no LoRA adapter named"):
        world.llm.use_adapter("b")
    np.testing.assert_array_equal(world.vectors(), before)


def test_broken_first_adapter_leaves_the_base_model(world: World, tmp_path: Path) -> None:
    before = world.vectors()
    with pytest.raises(FreshetError):
        world.llm.load_adapter(broken(tmp_path / "bad", "other rank", tmp_path / "llm"), "a")
    np.testing.assert_array_equal(world.vectors(), before)


def test_adapter_of_a_wider_model_is_rejected(world: World, tmp_path: Path) -> None:
    tiny.save(tmp_path / "gemma", "gemma3")
    folder = adapter(tmp_path / "a", tmp_path / "gemma")
    config = folder / "adapter_config.json"
    config.write_bytes(orjson.dumps(orjson.loads(config.read_bytes()) | {"r": 4}))
    with pytest.raises(FreshetError, match="does not fit"):
        world.llm.load_adapter(folder, "a")
