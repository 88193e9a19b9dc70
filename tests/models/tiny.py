"""Language models of a few thousand random weights, with a tokenizer, as Hugging Face folders."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.models.gemma2 import Gemma2Config
from transformers.models.gemma3 import Gemma3TextConfig
from transformers.models.llama import LlamaConfig
from transformers.models.qwen3 import Qwen3Config

from models.language.llm import LanguageModel
from schemas.settings import LlmSettings

KINDS = ("llama", "qwen3", "gemma2", "gemma3")
WINDOW = 6  # sliding window, shorter than the tests' histories
UNKNOWN = "<unk>"
SPECIAL = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,:;-!?'()<>/_\n"


def save(folder: Path, kind: str = "llama", seed: int = 0, vocabulary: int = 120) -> Path:
    """Write a random model and a letter tokenizer; with 120 pieces its loss, ln 120 = 4.8, passes the check."""
    torch.manual_seed(seed)
    shape = {
        "vocab_size": vocabulary, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.2}
    layers = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "sliding_window": WINDOW}
    config = {
        "llama": lambda: LlamaConfig(**shape),
        "qwen3": lambda: Qwen3Config(**shape),
        "gemma2": lambda: Gemma2Config(**shape, **layers, query_pre_attn_scalar=8, attn_logit_softcapping=5.0),
        "gemma3": lambda: Gemma3TextConfig(**shape, **layers, query_pre_attn_scalar=8),
    }[kind]()
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    vocabulary_of = {piece: index for index, piece in enumerate(["<pad>", "<bos>", "<eos>", "<unk>", *LETTERS])}
    backend = Tokenizer(models.WordLevel(vocabulary_of, unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIAL, unk_token=UNKNOWN).save_pretrained(folder)
    return folder


def load(folder: Path, kind: str = "llama", seed: int = 0, depth: float = 1.0) -> LanguageModel:
    """Return such a model, loaded like a user's model."""
    torch.set_num_threads(1)
    return LanguageModel.load(LlmSettings(name=str(save(folder, kind, seed)), device="cpu", depth=depth), folder)
