"""Fast text generation: a shared prefix is read once, states are updated in place, and the vocabulary is reduced.

The decoder is a full-depth copy, with 8-bit linear layers on CPUs that are fast with them (`models.language.int8`). Its
attention reads the prefix states, stored once for all rows, together with each row's own states.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from models.language.attention import no_mask
from models.language.int8 import Int8Linear, base_copy, quick
from models.language.llm import LanguageModel

NAME = "freshet-writing"
NEVER = torch.iinfo(torch.int64).max  # position of empty columns: after all tokens, so none attends to them
WORDS = 30_000
READ = 512  # tokens per reading pass


class Pages:
    """Keys and values of the shared prefix and of B rows.

    Args:
        shared: for each layer keys and values (key heads, S, D) of the prefix; empty = no prefix.
        places: (B, room) position of each token in its text, `NEVER` for empty columns.
        layers: for each layer keys and values (B, key heads, room, D).
        filled: number of columns in use.
    """

    def __init__(
        self, shared: list[tuple[Tensor, Tensor]], places: Tensor, layers: list[tuple[Tensor, Tensor]], filled: int = 0,
    ) -> None:
        self.shared, self.places, self.layers, self.filled = shared, places, layers, filled
        self._seen: dict[tuple[int, int | None], Tensor] = {}

    @property
    def rows(self) -> int:
        """B."""
        return len(self.places)

    @property
    def before(self) -> int:
        """S, tokens of the prefix."""
        return self.shared[0][0].shape[1] if self.shared else 0

    def only(self, rows: Tensor | slice) -> Pages:
        """Return the pages of some rows; a slice shares the storage."""
        return Pages(
            self.shared, self.places[rows], [(keys[rows], values[rows]) for keys, values in self.layers], self.filled)

    def open(self, places: Tensor) -> None:
        """Add columns for new tokens at the positions `places` (B, T)."""
        self.places[:, self.filled : self.filled + places.shape[1]] = places
        self.filled += places.shape[1]
        self._seen = {}

    def seen(self, new: int, window: int | None) -> Tensor:
        """Return (B, T, S + room) bool: what each of the T newest tokens may attend to."""
        if (new, window) not in self._seen:
            places = self.places
            at = places[:, self.filled - new : self.filled, None]
            begin = torch.arange(self.before, device=places.device).expand(len(places), -1)
            places = torch.cat([begin, places], 1)[:, None]
            seen = places <= at
            self._seen[new, window] = seen if window is None else seen & (at - places < window)
        return self._seen[new, window]


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    scaling: float | None = None, dropout: float = 0.0, sliding_window: int | None = None,
    softcap: float | None = None, pages: Pages | None = None, **_: Any,
) -> tuple[Tensor, None]:
    """Return the attention output (B, T, heads, D) of new tokens over the pages and, causally, over each other.

    The arguments are those of `models.language.attention.attend`; keys and values are stored in the pages.
    """
    assert pages is not None  # noqa: S101 - only the writer calls its copy of the decoder
    batch, heads, new, size = query.shape
    kinds, layer = key.shape[1], int(module.layer_idx)  # type: ignore[arg-type]
    groups = heads // kinds
    scale = scaling if scaling is not None else size**-0.5
    keys, values = pages.layers[layer]
    grouped = (query * scale).to(keys.dtype).reshape(batch, kinds, groups * new, size)
    keys[:, :, pages.filled - new : pages.filled] = key
    values[:, :, pages.filled - new : pages.filled] = value
    scores = grouped @ keys.transpose(2, 3)  # includes empty columns; cutting them off would copy all others
    if before := pages.before:
        old, old_value = pages.shared[layer]
        together = grouped.transpose(0, 1).reshape(kinds, -1, size)  # one product for all rows
        shared_scores = (together @ old.transpose(1, 2)).view(kinds, batch, groups * new, before).transpose(0, 1)
        scores = torch.cat([shared_scores, scores], 3)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    unseen = ~pages.seen(new, sliding_window)[:, None, None]
    scores = scores.float().view(batch, kinds, groups, new, -1).masked_fill_(unseen, torch.finfo(torch.float32).min)
    weights = torch.softmax(scores, -1, dtype=torch.float32).to(keys.dtype).flatten(2, 3)
    out = weights[..., before:] @ values
    if before:
        shared_out = weights[..., :before].transpose(0, 1).reshape(kinds, -1, before) @ old_value
        out = out + shared_out.view(kinds, batch, groups * new, size).transpose(0, 1)
    return out.to(query.dtype).view(batch, heads, new, size).transpose(1, 2), None


class Writer:
    """A copy of a language model for text generation.

    Attributes:
        words: (V',) ids it may write: plain English pieces (`plain_words`) and the ends.
        ends: ids that end an answer: the line end and the model's own end tokens.
        stop: id of the full stop, −1 = none.
        digits: ids of the digits.

    Args:
        llm: the model; it is not modified.
        int8: whether to use 8-bit linear layers; None = if that is fast.
    """

    def __init__(self, llm: LanguageModel, int8: bool | None = None) -> None:
        AttentionInterface.register(NAME, attend)
        AttentionMaskInterface.register(NAME, no_mask)
        self.llm = llm
        self.int8 = quick(llm.device) if int8 is None else int8
        with llm.whole():
            self._decoder = base_copy(llm.decoder, self.int8)
        self._decoder.set_attn_implementation(NAME)
        head = llm.causal.get_output_embeddings()  # type: ignore[operator]
        ends = [token for token in (llm.tokenizer.eos_token_id, *_ids(llm, "\n")) if token is not None]
        self.stop = next(iter(_ids(llm, ".")), -1)
        self.digits = torch.tensor([token for digit in "0123456789" for token in _ids(llm, digit)], device=llm.device)
        words = sorted({*plain_words(llm.tokenizer, head.weight.shape[0]), *ends})
        self.ends, self.words = (torch.tensor(ids, device=llm.device) for ids in (ends, words))
        rows = head.weight[self.words]
        self._words = Int8Linear(rows) if self.int8 else lambda hidden: hidden @ rows.T
        self._begun: tuple[list[int], list[tuple[Tensor, Tensor]]] = ([], [])

    def read(self, rows: list[list[int]], begin: list[int], room: int = 0) -> tuple[Pages, Tensor]:
        """Read token rows that follow a common prefix.

        Args:
            rows: B non-empty rows of ids.
            begin: ids of the prefix; its states are kept until the prefix changes.
            room: free columns to reserve for generated tokens.

        Returns:
            The pages, and hidden states (B, T, H), undefined after a row's end.
        """
        if begin != self._begun[0]:
            self._begun = (begin, [])
            pages = self._pages([], 1, len(begin))
            self._pass(torch.tensor([begin]), torch.arange(len(begin))[None], pages)
            self._begun = (begin, [(keys[0], values[0]) for keys, values in pages.layers])
        width = max(map(len, rows))
        ids = torch.zeros(len(rows), width, dtype=torch.int64)
        places = torch.full((len(rows), width), NEVER)
        for at, row in enumerate(rows):
            ids[at, : len(row)] = torch.tensor(row)
            places[at, : len(row)] = len(begin) + torch.arange(len(row))
        pages = self._pages(self._begun[1], len(rows), width + room)
        part = max(1, READ // width)
        hidden = []
        for at in range(0, len(rows), part):
            some = slice(at, at + part)
            hidden.append(self._pass(ids[some], places[some], pages.only(some)))
        pages.filled = width
        return pages, torch.cat(hidden)

    def step(self, tokens: Tensor, places: Tensor, pages: Pages) -> Tensor:
        """Read one more token per row (B,) at positions `places` (B,); return hidden states (B, H)."""
        return self._pass(tokens[:, None], places[:, None], pages)[:, 0]

    def scores(self, hidden: Tensor) -> Tensor:
        """Return logits (B, V') of the next words for hidden states (B, H)."""
        return self._words(hidden).float()

    def _pages(self, shared: list[tuple[Tensor, Tensor]], rows: int, room: int) -> Pages:
        llm = self.llm
        places = torch.full((rows, room), NEVER, device=llm.device)
        shape = (rows, llm.key_heads, room, llm.head_size)
        dtype = torch.bfloat16 if self.int8 else llm.dtype
        return Pages(shared, places, [
            (torch.zeros(shape, dtype=dtype, device=llm.device), torch.zeros(shape, dtype=dtype, device=llm.device))
            for _ in self._decoder.layers])

    @torch.no_grad()
    def _pass(self, ids: Tensor, places: Tensor, pages: Pages) -> Tensor:
        ids, places = ids.to(self.llm.device), places.to(self.llm.device)
        pages.open(places)
        return self._decoder(
            inputs_embeds=self.llm.embed(ids), position_ids=torch.where(places == NEVER, 0, places), use_cache=False,
            pages=pages).last_hidden_state


def plain_words(tokenizer: Any, size: int) -> list[int]:
    """Return ids below `size` of plain English pieces: printable ASCII, either single characters or early pieces.

    Byte-pair vocabularies are in merge order, so the first pieces are the most common ones.
    """
    pieces = tokenizer.convert_ids_to_tokens(list(range(min(size, len(tokenizer)))))
    special = set(tokenizer.all_special_ids)
    kept = []
    for index, piece in enumerate(pieces):
        text = piece.replace("\u2581", " ").replace("\u0120", " ")  # spaces as SentencePiece and GPT-2 write them
        if index not in special and text.isascii() and text.isprintable() and (index < WORDS or len(text) == 1):
            kept.append(index)
    return kept


def _ids(llm: LanguageModel, text: str) -> list[int]:
    """Return a list with the last token of a text, empty without tokens."""
    return list(llm.tokenizer(text, add_special_tokens=False).input_ids)[-1:]
