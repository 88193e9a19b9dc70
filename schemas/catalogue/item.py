"""An item of the catalogue as a shop sends it. A record without a value (a tombstone) removes the item of its key."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from schemas.events import Identifier, Label
from schemas.messages import Message
from schemas.reading.fields import label

MAX_TITLE, MAX_TEXT = 2_000, 20_000  # characters; what is longer is cut
MAX_LABELS, MAX_LABEL = 100, 100


def _labels(value: Any) -> Any:
    """Return one label as a list, and every label as text; null and empty ones are left out."""
    if value is None or value == "":
        return []
    found = value if isinstance(value, list) else [value]
    return [text for one in found[: MAX_LABELS + 1] if (text := label(one, MAX_LABEL))]


class CatalogueItem(Message):
    """producers → knowledge, ranking: an item as it is from now on. The newest record of an item counts."""

    item_id: Identifier = Field(description="the record's key as well")
    title: Annotated[str, BeforeValidator(partial(label, limit=MAX_TITLE), json_schema_input_type=Label)] = Field(
        default="", description="its name")
    attributes: list[Any] | dict[str, Any] | str | None = Field(
        default=None, description="what it is: a list (genres, brand) or names with values")
    text: Annotated[str, BeforeValidator(partial(label, limit=MAX_TEXT), json_schema_input_type=Label)] = Field(
        default="", description="further text; title, attributes and text together are read, up to 320 characters")
    available: bool = Field(default=True, description="false = in no list, but events with it count")
    labels: Annotated[list[str], BeforeValidator(_labels, json_schema_input_type=list[str] | str | None)] = Field(
        default_factory=list, max_length=MAX_LABELS, description="any names, for rules")
    price: Annotated[float | None, Field(ge=0, allow_inf_nan=False)] = Field(
        default=None, description="in the shop's currency, for rules")
