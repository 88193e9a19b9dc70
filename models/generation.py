"""Text from the language model: greedy, batched, states of what was read kept, answers on disk as soon as they come."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import orjson
import torch
from torch import Tensor

from models.dataset import clean
from models.llm import LanguageModel

ANSWER_TOKENS = 48
LEAST_TOKENS = 12  # a base model likes to end at once
BATCH = 32
PROMPT_TOKENS = 160


class Growing:
    """Keys and values of what a batch has read so far, as a `models.attention.Memory`."""

    def __init__(self, present: Tensor) -> None:
        self.mask = torch.zeros(len(present), 0, dtype=torch.bool, device=present.device)
        self.positions = torch.zeros(len(present), 0, dtype=torch.int64, device=present.device)
        self.new: Tensor | None = present
        self.record: list[tuple[Tensor, Tensor]] | None = []
        self._states: list[tuple[Tensor, Tensor]] = []

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """Return keys and values (B, heads, P, D) of a layer."""
        return self._states[index]

    def grow(self, positions: Tensor, present: Tensor) -> None:
        """Take in what the last pass recorded, at `positions` (B, T), of which `present` (B, T) is no padding."""
        record = self.record or []
        self._states = [
            (torch.cat([old[0], new[0]], 2), torch.cat([old[1], new[1]], 2)) for old, new in zip(
                self._states, record, strict=True)] if self._states else list(record)
        self.mask = torch.cat([self.mask, present], 1)
        self.positions = torch.cat([self.positions, positions], 1)
        self.record, self.new = [], None


@torch.no_grad()
def answer(llm: LanguageModel, prompts: list[str], tokens: int = ANSWER_TOKENS) -> list[str]:
    """Return what the language model goes on to write after each prompt, greedily, without special tokens.

    No three tokens come twice in an answer: Gemma 3 270M else writes "It is a very funny movie." again and again.

    Args:
        prompts: read up to `PROMPT_TOKENS`, from their end.
        tokens: at most; a line's end is an answer's end.
    """
    if not prompts:
        return []
    start = [llm.tokenizer.bos_token_id] if llm.tokenizer.bos_token_id is not None else []
    ids = [start + list(row)[-PROMPT_TOKENS:] for row in llm.tokenizer(prompts, add_special_tokens=False).input_ids]
    width = max(map(len, ids))
    batch = torch.zeros(len(ids), width, dtype=torch.int64, device=llm.device)
    lengths = torch.tensor([len(row) for row in ids], device=llm.device)
    for at, row in enumerate(ids):
        batch[at, : len(row)] = torch.tensor(row)
    present = torch.arange(width, device=llm.device) < lengths[:, None]
    positions = torch.arange(width, device=llm.device).expand(len(ids), -1)
    head = llm.causal.get_output_embeddings()  # type: ignore[operator]
    ends = _ends(llm)
    out = torch.zeros(len(ids), 0, dtype=torch.int64, device=llm.device)
    done = torch.zeros(len(ids), dtype=torch.bool, device=llm.device)
    with llm.whole():
        memory = Growing(present)
        hidden = llm.run(llm.embed(batch), positions, memory)
        memory.grow(positions, present)
        state = hidden[torch.arange(len(ids), device=llm.device), lengths - 1]
        for step in range(tokens):
            logits = head(state).float()
            if step < LEAST_TOKENS:
                logits[:, ends] = -torch.inf
            for at, banned in enumerate(_repeated(out.tolist())):
                logits[at, banned] = -torch.inf
            token = logits.argmax(-1)
            out = torch.cat([out, torch.where(done, -1, token)[:, None]], 1)
            done = done | torch.isin(token, ends)
            if bool(done.all()) or step + 1 == tokens:
                break
            place = (lengths + step)[:, None]
            state = llm.run(llm.embed(token[:, None]), place, memory)[:, 0]
            memory.grow(place, torch.ones_like(place, dtype=torch.bool))
    return [llm.tokenizer.decode([t for t in row if t >= 0], skip_special_tokens=True) for row in out.tolist()]


def generated(
    llm: LanguageModel, prompts: list[str], folder: Path, progress: Callable[[int, int], None] | None = None,
    tokens: int = ANSWER_TOKENS,
) -> list[str]:
    """Return cleaned answers to prompts; those that are on disk are read, the others written as they come.

    Args:
        folder: one file per language model and length.
        progress: called with prompts answered and prompts in all.
    """
    name = hashlib.sha256(f"{llm.fingerprint}|{tokens}|{PROMPT_TOKENS}|{LEAST_TOKENS}".encode()).hexdigest()[:16]
    path = folder / f"{name}.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    known = dict(_read(path))
    wanted = {_key(prompt): prompt for prompt in prompts}
    # Prompts of one length share a batch: hardly any padding.
    missing = sorted((key for key in wanted if key not in known), key=lambda key: (len(wanted[key]), key))
    with path.open("ab") as file:
        for at in range(0, len(missing), BATCH):
            keys = missing[at : at + BATCH]
            for key, text in zip(keys, answer(llm, [wanted[key] for key in keys], tokens), strict=True):
                known[key] = clean(text)
                file.write(orjson.dumps([key, known[key]]) + b"\n")
            file.flush()
            if progress is not None:
                progress(at + len(keys), len(missing))
    return [known[_key(prompt)] for prompt in prompts]


def _read(path: Path) -> Iterator[tuple[str, str]]:
    if not path.is_file():
        return
    for line in path.read_bytes().splitlines():
        try:
            key, text = orjson.loads(line)
        except (orjson.JSONDecodeError, ValueError):
            continue  # the last line of an interrupted run
        yield str(key), str(text)


def _key(prompt: str) -> str:
    return hashlib.sha256(prompt.encode()).hexdigest()[:24]


def _repeated(written: list[list[int]]) -> list[list[int]]:
    """Return for each answer so far the tokens that would repeat three of its tokens."""
    out = []
    for row in written:
        last = row[-2:]
        out.append([row[at + 2] for at in range(len(row) - 2) if row[at : at + 2] == last and row[at + 2] >= 0])
    return out


def _ends(llm: LanguageModel) -> Tensor:
    newline = list(llm.tokenizer("\n", add_special_tokens=False).input_ids)[-1:]
    ends = [token for token in (llm.tokenizer.eos_token_id, *newline) if isinstance(token, int)]
    return torch.tensor(ends, device=llm.device)
