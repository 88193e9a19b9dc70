"""What is known of the catalogue's items besides behaviour: their texts, what a language model wrote, and encodings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np
import numpy.typing as npt

Encodings = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class ItemKnowledge:
    """Knowledge of n items, in row order.

    Args:
        texts: (n,) texts of the catalogue; "" = none.
        written: (n,) keywords or descriptions that a language model wrote; "" = none. None = nothing was written.
        encoded: (n, d) float32 sentence encodings of the texts, rows of unit length or zero. None = no encoder.

    Raises:
        ValueError: the parts differ in length.
    """

    texts: Sequence[str]
    written: Sequence[str] | None = None
    encoded: Encodings | None = None

    def __post_init__(self) -> None:
        """Check the lengths: rows that do not match would give every item another item's knowledge."""
        for part in (self.written, self.encoded):
            if part is not None and len(part) != len(self.texts):
                raise ValueError(f"{len(part)} rows of knowledge for {len(self.texts)} items")

    def joined(self) -> list[str]:
        """Return each item's text followed by what was written of it, (n,)."""
        return [f"{text} {more}".strip() for text, more in zip(self.texts, self.written or [""] * len(self.texts),
                                                               strict=True)]

    def has(self, part: str) -> bool:
        """Return whether there is anything to say for a part of `Parts`."""
        given = {"words": any(self.texts), "encoder": self.encoded is not None and bool(np.any(self.encoded)),
                 "written": self.written is not None and any(self.written)}
        return given[part]

    def calls(self, part: str) -> int:
        """Return how many texts an encoder read, or a language model wrote, for a part."""
        if part == "encoder" and self.encoded is not None:
            return int(np.any(self.encoded != 0, 1).sum())
        return sum(map(bool, self.written)) if part == "written" and self.written is not None else 0

    def at(self, rows: Sequence[int]) -> ItemKnowledge:
        """Return the knowledge of the items `rows` (m,)."""
        return ItemKnowledge(
            [self.texts[row] for row in rows], None if self.written is None else [self.written[row] for row in rows],
            None if self.encoded is None else self.encoded[np.asarray(rows, np.int64)])


@dataclass(frozen=True, slots=True)
class Parts:
    """Weights of item knowledge in the closed form, as multiples of the mean number of users per item; 0 = off.

    Args:
        words: of shared words in the texts.
        encoder: of similar sentence encodings.
        written: of shared words in texts and written knowledge, joined.
    """

    words: float = 0.0
    encoder: float = 0.0
    written: float = 0.0

    def __bool__(self) -> bool:
        """Whether any part is on."""
        return any(weight > 0 for weight in astuple(self))


BEHAVIOUR = Parts()  # no item knowledge
