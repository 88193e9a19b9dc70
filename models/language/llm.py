"""The frozen language model: the packaged Gemma 3 270M, or any Hugging Face causal LM by id or folder."""

from __future__ import annotations

import hashlib
import inspect
import json
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from models.compute.devices import device_named
from models.language import adapters, attention
from models.language.attention import Memory
from models.language.gguf import packaged_gemma, packaged_tokenizer
from schemas.errors import FreshetError
from schemas.settings import LlmSettings

PACKAGED = "gemma-3-270m"
# Loss of Gemma 3 270M: 3.0 nats per token; 8.3 with a broken tokenizer (models/language/gguf.py); random guessing has
# ln(vocabulary), 10 to 12.
PROBE = "I went to the shop on Saturday to buy bread, but it had closed early because of the holiday."
WORST_LOSS = 6.0
_INCIDENTAL = {"_name_or_path", "dtype", "torch_dtype", "transformers_version", "architectures"}  # not hashed


def unsupported(causal: nn.Module) -> str:
    """Return the class of a model whose layers cannot be continued from stored states, "" if they can.

    They can where a decoder has a list of `layers`, each with `self_attn` and q_proj, and takes an attention function
    by name.
    """
    try:
        layers = causal.get_decoder().layers  # type: ignore[operator]
        fits = hasattr(layers[0].self_attn, "q_proj") and getattr(causal, "_supports_attention_backend", False)
    except (AttributeError, IndexError, TypeError, NotImplementedError):
        fits = False
    return "" if fits else type(causal).__name__


class LanguageModel:
    """A frozen decoder whose forward pass continues from stored states (`models/language/item_cache.py`).

    Attributes:
        model_id: name of the model.
        fingerprint: hash of the configuration and a sample of the weights; caches depend on it.
        hidden_size: H, width of the hidden states.
        layers: L, number of decoder layers in use.
        device: device of the model.
        embedding_norm: mean L2 norm of the input vectors; soft instructions are scaled to it.
        adapter: name of the LoRA adapter in use, None = none.
    """

    def __init__(self, causal: nn.Module, tokenizer: Any, model_id: str, layers: int = 0) -> None:
        attention.register()
        causal.set_attn_implementation(attention.NAME)  # type: ignore[operator]
        self.model_id = model_id
        self.tokenizer = tokenizer
        self.causal = causal.eval().requires_grad_(False)
        self.decoder: Any = causal.get_decoder()  # type: ignore[operator]
        self._whole = self.decoder.layers
        self.layers = min(layers, len(self._whole)) if layers else len(self._whole)
        self._cut(self.decoder.layers[: self.layers])
        config = self.decoder.config
        self.hidden_size = int(config.hidden_size)
        self.key_heads = int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
        self.head_size = int(getattr(config, "head_dim", None) or self.hidden_size // config.num_attention_heads)
        weights = self.decoder.get_input_embeddings().weight
        self.device: torch.device = weights.device
        self.dtype: torch.dtype = weights.dtype
        ids = torch.arange(0, weights.shape[0], max(1, weights.shape[0] // 1000), device=self.device)
        self.embedding_norm = float(self.embed(ids).float().norm(dim=-1).mean())
        self.adapter: str | None = None
        self.calls, self.tokens = 0, 0  # forward passes and the tokens in them, padding included
        self.fingerprint = self._fingerprint()

    @classmethod
    def load(cls, settings: LlmSettings, cache_dir: Path) -> LanguageModel:
        """Load the model named in the settings; the packaged model is unpacked into `cache_dir` on first use.

        Raises:
            FreshetError: the model is missing, unreadable, or fails on plain English; the message has the remedy.
        """
        logging.disable_progress_bar()
        device = device_named(settings.device, "FRESHET_LLM_DEVICE")
        name = settings.name
        pinned = {"revision": settings.revision} if settings.revision else {}
        if pinned and (name == PACKAGED or Path(name).is_dir()):
            raise FreshetError(f"FRESHET_LLM_REVISION={settings.revision} pins a model by its Hugging Face id, and "
                               f"FRESHET_LLM_NAME={name} is none; unset it")
        packaged = packaged_gemma(cache_dir / f"{PACKAGED}-converted-1") if name == PACKAGED else None
        source = str(packaged or name)
        try:
            # AutoTokenizer parses the 262,144 pieces several times: 4.3 s instead of 1.1
            tokenizer = packaged_tokenizer(packaged) if packaged else AutoTokenizer.from_pretrained(
                source, **pinned)
            # pickle checkpoints are always refused
            causal = AutoModelForCausalLM.from_pretrained(
                source, dtype=_dtype(device), use_safetensors=True, **pinned).to(device)
        except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
            raise FreshetError(
                f"the language model {_pinned(settings)!r} cannot be loaded: {_first_line(error)}. FRESHET_LLM_NAME "
                f"takes a folder, a Hugging Face id (which needs the network or a filled cache), or {PACKAGED!r}, "
                "which comes with Freshet") from error
        if (kind := unsupported(causal)):
            raise FreshetError(
                f"the language model {name!r} is a {kind}. Freshet continues decoders from stored states and supports "
                "those built like Llama: Gemma, Mistral, Qwen and many more, but not GPT-2, Falcon, BLOOM, Mamba or "
                "encoders such as BERT. Set FRESHET_LLM_NAME to another model")
        name = _pinned(settings)
        model = cls(causal, tokenizer, name)
        if not (loss := model.loss(PROBE)) <= WORST_LOSS:  # NaN too
            raise FreshetError(
                f"the language model {name!r} has a loss of {loss:.1f} nats per token on plain English, which is "
                f"no better than noise (sound: below {WORST_LOSS:.0f}): its weights or tokenizer are broken. Remove "
                f"{source} to have it made or fetched again, or set FRESHET_LLM_NAME to another model")
        return cls(causal, tokenizer, name, max(1, round(settings.depth * model.layers)))

    @torch.no_grad()
    def loss(self, text: str) -> float:
        """Return the whole model's mean negative log-likelihood of a text without its first token, nats per token."""
        ids = torch.tensor([self.tokenizer(text).input_ids], device=self.device)
        with self.whole():  # the output head needs the last layer
            logits = self.causal(input_ids=ids, use_cache=False).logits[0, :-1].float()
        return float(nn.functional.cross_entropy(logits, ids[0, 1:]))

    def tokenize(self, texts: list[str], limit: int) -> list[list[int]]:
        """Return the token ids of each text, at most `limit`, without special tokens.

        Control characters become spaces, and names of special tokens (`<end_of_turn>`) are treated as plain text.
        """
        if not texts:
            return []
        clean = [plain(text[: 64 * limit]) for text in texts]  # do not tokenise a megabyte to keep 24 tokens
        encoded = self.tokenizer(clean, add_special_tokens=False, split_special_tokens=True).input_ids
        return [list(ids[:limit]) for ids in encoded]

    def embed(self, ids: Tensor) -> Tensor:
        """Return the input vectors (…, H) of token ids, scaled as the decoder expects."""
        return self.decoder.get_input_embeddings()(ids)

    def _cut(self, layers: Any) -> None:
        self.decoder.layers = layers
        self.decoder.config.num_hidden_layers = len(layers)

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Run all decoder layers inside the block, not only the first `layers`."""
        used = self.decoder.layers
        self._cut(self._whole)
        try:
            yield
        finally:
            self._cut(used)

    def run(self, inputs: Tensor, positions: Tensor, memory: Memory, adapted: bool = False) -> Tensor:
        """Return the last hidden states (B, T, H) of new tokens that follow the states in `memory`.

        Args:
            inputs: (B, T, H) input vectors; gradients flow to them.
            positions: (B, T) positions in the sequence.
            memory: the states before the new tokens.
            adapted: use the active LoRA adapter; True for instructions, False for texts to be stored.
        """
        if self.adapter is not None:
            adapters.enable(self.decoder, adapted)
        self.calls += 1
        self.tokens += inputs.shape[0] * inputs.shape[1]
        inputs = inputs.to(self.dtype).contiguous()  # with a strided view each linear layer runs as B small ones
        out = self.decoder(
            inputs_embeds=inputs, position_ids=positions, use_cache=False, memory=memory)
        return out.last_hidden_state

    def rotation(self, shift: Tensor, layer: int) -> tuple[Tensor, Tensor] | None:
        """Return cos and sin (…, rotated size) that move a layer's keys by `shift` (B, P) positions.

        None if the model has no rotary positions or scales them, so that a rotation cannot move keys.
        """
        rotary = getattr(self.decoder, "rotary_emb", None)
        if rotary is None:
            return None
        sample = torch.zeros(1, device=self.device)
        if "layer_type" not in inspect.signature(rotary.forward).parameters:
            return rotary(sample, shift) if getattr(rotary, "attention_scaling", 1.0) == 1.0 else None
        kind = self.decoder.config.layer_types[layer]
        if getattr(rotary, f"{kind}_attention_scaling", 1.0) != 1.0:
            return None
        return rotary(sample, shift, kind)

    def load_adapter(self, path: Path, name: str) -> None:
        """Load a LoRA adapter (a peft folder with safetensors) as `name`; the active adapter stays active.

        Raises:
            FreshetError: the adapter is damaged or made for another model; the model stays unchanged.
        """
        try:
            adapters.load(self.decoder, path, name)
        finally:  # peft activates the newest adapter
            adapters.choose(self.decoder, self.adapter)

    def use_adapter(self, name: str | None) -> None:
        """Use a loaded adapter from the next forward pass on; None = the base model.

        The adapter applies to instruction positions only. Stored item states come from the base model, so a new adapter
        does not invalidate the catalogue's cache. LoRA is trained under the same condition.

        Raises:
            FreshetError: no adapter of this name was loaded.
        """
        adapters.choose(self.decoder, name)
        self.adapter = name

    def _fingerprint(self) -> str:
        about = {key: value for key, value in self.decoder.config.to_dict().items() if key not in _INCIDENTAL}
        digest = hashlib.sha256(json.dumps([self.layers, about], sort_keys=True, default=str).encode())
        for name, weight in self.decoder.named_parameters():
            if "norm" in name or "layers.0.self_attn.q_proj" in name:
                # bfloat16 on every device: states from a GPU are valid on a CPU, too; both are stored in float16
                digest.update(name.encode() + weight.to(torch.bfloat16).float().cpu().numpy().tobytes())
        return digest.hexdigest()


def plain(text: str) -> str:
    """Return a text on one line, without control characters."""
    kept = "".join(" " if unicodedata.category(char)[0] == "C" else char for char in text)
    return " ".join(kept.split())


def _pinned(settings: LlmSettings) -> str:
    """Return the model's name with its revision: what other revisions wrote is not this one's."""
    return f"{settings.name}@{settings.revision}" if settings.revision else settings.name


def _dtype(device: torch.device) -> torch.dtype:
    """Return bfloat16 for a GPU, float32 for a CPU: bfloat16 without AVX-512 BF16 or AMX is ten times slower."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
