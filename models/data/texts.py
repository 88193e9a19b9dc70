"""Texts of items on one line: bounded, and without what a terminal, a page or a chat template might obey."""

from __future__ import annotations

import html
import re
from math import isfinite
from typing import Any

MAX_TITLE = 160  # characters; on Beauty the 99% quantile of titles is 150 and the longest has 879
MAX_TEXT = 320

# Control, formatting and direction characters, and markup that a chat template might read as a new turn.
_UNSAFE = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u00ad\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff\ufff9-\ufffd\ud800-\udfff]"
    r"|</?[|\w][^<>]{0,40}>"
)
_SPACES = re.compile(r"\s+")


def clean(text: str, limit: int = MAX_TEXT) -> str:
    """Return `text` on one line, without control characters and markup, at most `limit` characters."""
    for _ in range(2):  # shops escape twice: "L&amp;#39;Oreal"
        if "&" in text:
            text = html.unescape(text)
    text = _SPACES.sub(" ", _UNSAFE.sub(" ", text)).strip()
    return text if len(text) <= limit else text[:limit].rsplit(" ", 1)[0]


def item_title(title: Any) -> str:
    """Return the title of an item, cleaned."""
    return clean(_flat(title), MAX_TITLE)


def item_text(title: Any, attributes: Any, more: str = "") -> str:
    """Return the text of an item: its title, then its attributes (a list or a dict), then further text, cleaned."""
    head = item_title(title)
    if isinstance(attributes, dict):
        parts = [f"{key}: {_flat(value)}" for key, value in attributes.items() if _flat(value)]
    elif isinstance(attributes, list):
        parts = [_flat(value) for value in attributes if _flat(value)]
    else:
        parts = [_flat(attributes)] if attributes else []
    return clean(". ".join(part for part in (head, ", ".join(parts), more[: 4 * MAX_TEXT]) if part))


def _flat(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(_flat(part) for part in value)
    if isinstance(value, float):
        return "" if not isfinite(value) else str(int(value)) if value.is_integer() else str(value)
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""
