"""Reads items from files and sends them to the topic `catalogue`, for `freshet produce --catalogue`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from pydantic import ValidationError

from models.data.account import Account
from models.data.loading import described, named_item
from models.data.opening import text_lines
from models.data.tables import read_lines, read_table
from schemas.catalogue.item import CatalogueItem
from schemas.errors import DataError
from schemas.events import describe
from schemas.reading.fields import identifier
from schemas.settings import EventSettings

# A line with it removes the item: {"item_id": "7", "removed": true}.
REMOVED = "removed"
_RULES = ("available", "labels", "price", "text")
_YES = {"true", "1", "yes"}


def read_items(
    file: str, account: Account, settings: EventSettings, stdin: IO[bytes] | None = None,
) -> Iterator[tuple[str, CatalogueItem | None]]:
    """Yield ids and items of a file, in any format that `models.data.tables` reads; None = the item is removed.

    Args:
        file: its path, "-" for standard input.
        account: counts what is left out.
        settings: encoding.

    Raises:
        DataError: the file is missing, empty or unreadable, or has no column for the item's id.
    """
    if file == "-" and stdin is not None:
        rows = read_lines(text_lines(account.name, stdin, settings.encoding), account)
    else:
        rows = read_table(Path(file), account, encoding=settings.encoding)
    for number, row in rows:
        try:
            name = identifier(named_item(row))
            item = None if str(row.get(REMOVED, "")).lower() in _YES else _item(name, row)
        except ValidationError as error:
            account.skip(describe(error), number, _shown(row))
        except ValueError as error:
            if account.columns and named_item(row) is None and account.read == 1:
                raise DataError(f"{account.name} has no column for the item's id, such as item_id; it has "
                                f"{', '.join(account.columns)[:300]}") from error
            account.skip(f"item_id: {error}", number, _shown(row))
        else:
            account.used += 1
            yield name, item


def _item(name: str, row: Mapping[str, Any]) -> CatalogueItem:
    title, attributes = described(row)
    fields = {field: row[field] for field in _RULES if row.get(field) not in (None, "")}
    return CatalogueItem(item_id=name, title=title or "", attributes=attributes or None, **fields)


def _shown(row: Mapping[str, Any]) -> str:
    return ", ".join(str(value) for value in row.values())
