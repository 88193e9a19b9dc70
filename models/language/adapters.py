"""LoRA adapters (peft) in a decoder: validated before loading, and swapped while the decoder is in use."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from schemas.errors import FreshetError


def load(decoder: nn.Module, path: Path, name: str) -> None:
    """Load the adapter in `path` into the decoder as `name`. It replaces an adapter of that name only if it is valid.

    Raises:
        FreshetError: the adapter is damaged or made for another model; the decoder's adapters stay unchanged.
    """
    config, weights = read(path)
    trial = f"{name}__trial"  # peft silently drops weights that do not fit, so test under another name first
    try:
        _insert(decoder, config, weights, trial)
        if name in names(decoder):
            _delete(decoder, name)
        _insert(decoder, config, weights, name)
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        text = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
        raise FreshetError(f"the LoRA adapter {path} does not fit this language model: {text}") from error
    finally:
        _delete(decoder, trial)


def read(path: Path) -> tuple[LoraConfig, dict[str, Tensor]]:
    """Return configuration and weights of a peft folder; pickled weights are refused.

    Raises:
        FreshetError: a file is missing, damaged, not LoRA, or has non-finite weights.
    """
    try:
        config = PeftConfig.from_pretrained(str(path))
        weights = load_file(path / "adapter_model.safetensors")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise FreshetError(
            f"the LoRA adapter {path} cannot be read ({type(error).__name__}: {str(error).splitlines()[0][:200]}); "
            "it must be a peft folder with adapter_config.json and adapter_model.safetensors") from error
    if not isinstance(config, LoraConfig):
        raise FreshetError(f"{path} is a {config.peft_type} adapter; only LoRA is supported")
    if not weights or not all(bool(torch.isfinite(weight).all()) for weight in weights.values()):
        raise FreshetError(f"the LoRA adapter {path} is empty or has non-finite weights; train it again")
    return config, weights


def names(decoder: nn.Module) -> set[str]:
    """Return the names of the adapters in a decoder."""
    return {name for layer in _tuned(decoder) for name in layer.lora_A}


def choose(decoder: nn.Module, name: str | None) -> None:
    """Activate one adapter, frozen; None = no adapter.

    Raises:
        FreshetError: there is no adapter of that name.
    """
    if name is not None and name not in names(decoder):
        raise FreshetError(f"no LoRA adapter named {name!r} was loaded; there are: {sorted(names(decoder))}")
    for layer in _tuned(decoder):
        if name is not None and name in layer.lora_A:
            layer.set_adapter(name)
        layer.enable_adapters(name is not None and name in layer.lora_A)
    decoder.requires_grad_(False)


def enable(decoder: nn.Module, on: bool) -> None:
    """Switch the active adapter on or off, from the next forward pass on."""
    for layer in _tuned(decoder):
        layer._disable_adapters = not on  # enable_adapters() would also flip requires_grad of every weight


def _tuned(decoder: nn.Module) -> list[Any]:
    return [module for module in decoder.modules() if isinstance(module, BaseTunerLayer)]


def _insert(decoder: nn.Module, config: LoraConfig, weights: dict[str, Tensor], name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft warns about a second adapter
        inject_adapter_in_model(config, decoder, name)
    # Weight names start with base_model.model.model. if saved from the causal LM; the decoder lacks the last "model."
    cut = {key.removeprefix("base_model.model.").removeprefix("model."): value for key, value in weights.items()}
    result = set_peft_model_state_dict(decoder, cut, adapter_name=name)
    missing = [key for key in result.missing_keys if f".{name}." in key]
    if missing or result.unexpected_keys:
        raise ValueError(f"{len(missing)} weights are missing, {len(result.unexpected_keys)} are unknown")
    decoder.eval()


def _delete(decoder: nn.Module, name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft warns when an active adapter is deleted
        for layer in _tuned(decoder):
            if name in layer.lora_A:
                layer.delete_adapter(name)


def create(decoder: nn.Module, name: str, rank: int) -> None:
    """Add a new adapter with no initial effect to the decoder: LoRA on queries and values, α = 2r (CoCo: r 8, α 16).

    Raises:
        FreshetError: the decoder has no layers q_proj and v_proj.
    """
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["q_proj", "v_proj"], lora_dropout=0.0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            inject_adapter_in_model(config, decoder, name)
    except ValueError as error:
        raise FreshetError(f"LoRA needs layers named q_proj and v_proj, this language model has none: {error}"
                           ) from error
    decoder.eval()


def copy(decoder: nn.Module, source: str, name: str) -> None:
    """Copy the weights of adapter `source` into adapter `name`, made by `create`.

    Raises:
        FreshetError: the adapters differ in layers or rank.
    """
    for layer in _tuned(decoder):
        if (source in layer.lora_A) != (name in layer.lora_A) or (
                source in layer.lora_A and layer.r[source] != layer.r[name]):
            raise FreshetError(
                "the adapter in use has another rank or other layers than FRESHET_ALIGNMENT_RANK asks for; set that to "
                "its rank, or `freshet models rollback` first")
        if name in layer.lora_A:
            with torch.no_grad():
                layer.lora_A[name].weight.copy_(layer.lora_A[source].weight)
                # an external adapter may have another α
                layer.lora_B[name].weight.copy_(
                    layer.lora_B[source].weight * (layer.scaling[source] / layer.scaling[name]))


def trainable(decoder: nn.Module, name: str) -> list[nn.Parameter]:
    """Return the weights of an adapter, in float32 and with gradients; all other weights of the decoder are frozen."""
    decoder.requires_grad_(False)
    weights = []
    for layer in _tuned(decoder):
        if name in layer.lora_A:
            for part in (layer.lora_A[name], layer.lora_B[name]):
                part.float()  # bfloat16's 8 bits lose steps of 1e-4
                weights.append(part.weight.requires_grad_(True))
    return weights


def save(decoder: nn.Module, name: str, folder: Path) -> None:
    """Write an adapter as a peft folder for `load`."""
    weights: dict[str, Tensor] = {}
    rank = 0
    for path, layer in decoder.named_modules():
        if isinstance(layer, BaseTunerLayer) and name in layer.lora_A:
            rank = layer.r[name]
            for side in ("lora_A", "lora_B"):
                weight = getattr(layer, side)[name].weight
                weights[f"base_model.model.{path}.{side}.weight"] = weight.detach().float().cpu().contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules=["q_proj", "v_proj"], inference_mode=True,
    ).save_pretrained(str(folder))
    save_file(weights, folder / "adapter_model.safetensors")


def remove(decoder: nn.Module, name: str) -> None:
    """Remove an adapter from the decoder, if it exists."""
    _delete(decoder, name)
