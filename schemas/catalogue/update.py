"""What Freshet tells its roles of an item that came on the topic `catalogue`: it is read now."""

from __future__ import annotations

import hashlib
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from schemas.messages import Identity, Message, Seconds, Version, Whole

SIMILAR = 8  # items named as similar


class Alike(BaseModel):
    """An item with a similar text; `score` is a cosine."""

    model_config = ConfigDict(frozen=True)

    item_id: Identity
    score: float = Field(ge=0, le=1.01, allow_inf_nan=False)


class ItemUpdate(Message):
    """knowledge → ranking, streams: what is known of an item is in the store. A tombstone: the item was removed."""

    item_id: Identity
    version: Whole = Field(ge=1, description="of the item's record: its time on the broker in microseconds")
    about: Annotated[str, Field(max_length=64)] = Field(description="hash of the text that was read")
    encoder: Version = Field(default="", description="sentence encoder whose vector is in the store; empty = none")
    similar: list[Alike] = Field(
        default_factory=list, max_length=64, description="the fitted items with the most similar texts, nearest first")
    caused_at: Seconds = Field(description="broker timestamp of the item's record")
    written_at: Seconds


def about(text: str) -> str:
    """Return a short hash of a text; equal texts have equal hashes."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
