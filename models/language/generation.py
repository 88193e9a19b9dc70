"""Text generation with the language model: greedy, in batches; answers are saved to disk as they arrive."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import orjson
import torch
from torch import Tensor

from models.data.texts import clean
from models.language.llm import LanguageModel
from models.language.writer import WORDS, Writer, quick

ANSWER_TOKENS = 24
FORMAT = 2  # version of the texts; another number invalidates all stored texts
LEAST_TOKENS = 4  # minimum length: base models tend to stop immediately
BATCH = 256  # maximum of answers per batch
BATCH_TOKENS = 16_384  # prompt and answer tokens per batch: 300 MB of states, and a slow CPU saves every minute
PROMPT_TOKENS = 256  # maximum per prompt, without the prefix that all prompts share


def answer(writer: Writer, prompts: Sequence[str], tokens: int = ANSWER_TOKENS) -> list[str]:
    """Return the language model's greedy continuation of each prompt, without special tokens.

    An answer never repeats three tokens; otherwise Gemma 3 270M repeats "It is a very funny movie." endlessly.

    Args:
        writer: writer of the language model.
        prompts: a common prefix is read once; of the rest, the last `PROMPT_TOKENS` tokens are used.
        tokens: maximum length of an answer. It also ends with a line or sentence, because Gemma 3 270M's later
            sentences are less informative ("It is a bit of a mess, but it is fun to watch").
    """
    if not prompts:
        return []
    rows = token_rows(writer.llm, prompts)
    begin = common(rows)
    return _written(writer, begin, [row[len(begin) :][-PROMPT_TOKENS:] for row in rows], tokens)


def token_rows(llm: LanguageModel, prompts: Sequence[str]) -> list[list[int]]:
    """Return the ids of each prompt, with the model's start token if it has one."""
    start = [llm.tokenizer.bos_token_id] if llm.tokenizer.bos_token_id is not None else []
    return [start + list(row) for row in llm.tokenizer(list(prompts), add_special_tokens=False).input_ids]


def common(rows: list[list[int]]) -> list[int]:
    """Return the common prefix of all rows, leaving at least one token in each."""
    first, last = min(rows), max(rows)  # in lexical order, a prefix shared by these two is shared by all
    end = min(len(first), len(last)) - 1
    return first[: next((at for at in range(end) if first[at] != last[at]), max(0, end))]


@torch.no_grad()
def _written(writer: Writer, begin: list[int], rows: list[list[int]], tokens: int) -> list[str]:
    pages, hidden = writer.read(rows, begin, tokens)
    lengths = torch.tensor([len(row) for row in rows], device=hidden.device)
    state = hidden[torch.arange(len(rows), device=hidden.device), lengths - 1]
    place, ends = len(begin) + lengths, torch.isin(writer.words, writer.ends)
    stop, digit = writer.words == writer.stop, torch.isin(writer.words, writer.digits)
    left = torch.arange(len(rows), device=hidden.device)  # rows still in the batch
    going = torch.ones(len(rows), dtype=torch.bool, device=hidden.device)  # those without an end yet
    out = torch.full((len(rows), tokens), -1, device=hidden.device)  # indices into `words`
    for step in range(tokens):
        scores = writer.scores(state)
        if step < LEAST_TOKENS:
            scores[:, ends | stop] = -torch.inf
        scores[repeated(out[left, :step])] = -torch.inf
        word = scores.argmax(1)
        out[left, step] = torch.where(going, word, -1)
        going = going & ~ends[word]
        if step:
            going = going & ~(stop[word] & ~digit[out[left, step - 1]])  # no end inside "1.5"
        if step + 1 == tokens or not bool(going.any()):
            break
        if int(going.sum()) <= 0.75 * pages.rows:  # compacting the states costs about one step
            left, word, place, pages = left[going], word[going], place[going], pages.only(going)
            going = going[going]
        state = writer.step(writer.words[word], place + step, pages)
    ids = torch.where(out >= 0, writer.words[out], -1).tolist()
    last = set(writer.ends.tolist())
    texts = [row[: next((at for at, token in enumerate(row) if token in last or token < 0), tokens)] for row in ids]
    return list(writer.llm.tokenizer.batch_decode(texts, skip_special_tokens=True))


def repeated(written: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows and words that would repeat a sequence of three words in the text so far (B, T)."""
    if written.shape[1] < 3:
        empty = torch.zeros(0, dtype=torch.int64, device=written.device)
        return empty, empty
    again = (written[:, :-2] == written[:, -2:-1]) & (written[:, 1:-1] == written[:, -1:])
    row, at = again.nonzero(as_tuple=True)
    return row, written[row, at + 2]


def generated(
    llm: LanguageModel, prompts: list[str], folder: Path, progress: Callable[[int, int], None] | None = None,
    tokens: int = ANSWER_TOKENS,
) -> list[str]:
    """Return cleaned answers to prompts. Stored answers are read from disk; new ones are saved as they arrive.

    Args:
        folder: folder with one file per language model and generation settings.
        progress: called with the number of prompts answered and the total.
    """
    path = folder / f"{hashlib.sha256(manner(llm, tokens).encode()).hexdigest()[:16]}.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    known = dict(_read(path))
    wanted = {_key(prompt): prompt for prompt in prompts}
    missing = [key for key in wanted if key not in known]
    if missing:
        rows = token_rows(llm, [wanted[key] for key in missing])
        begin = common(rows)
        own = {key: row[len(begin) :][-PROMPT_TOKENS:] for key, row in zip(missing, rows, strict=True)}
        missing.sort(key=lambda key: (len(own[key]), key))  # prompts of equal length share a batch, without padding
        writer = Writer(llm)
        with path.open("ab") as file:
            at = 0
            while at < len(missing):
                longest = len(own[missing[min(at + BATCH, len(missing)) - 1]]) + tokens
                keys = missing[at : at + max(1, min(BATCH, BATCH_TOKENS // longest))]
                texts = _written(writer, begin, [own[key] for key in keys], tokens)
                for key, text in zip(keys, texts, strict=True):
                    known[key] = clean(text)
                    file.write(orjson.dumps([key, known[key]]) + b"\n")
                file.flush()
                at += len(keys)
                if progress is not None:
                    progress(at, len(missing))
    return [known[_key(prompt)] for prompt in prompts]


def manner(llm: LanguageModel, tokens: int) -> str:
    """Return everything except the prompt that determines a text."""
    precision = "int8" if quick(llm.device) else str(llm.dtype)
    return f"{FORMAT}|{llm.fingerprint}|{precision}|{WORDS}|{tokens}|{PROMPT_TOKENS}|{LEAST_TOKENS}"


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
