"""Items from files."""

from __future__ import annotations

import io

import pytest

from models.data.account import Account
from models.data.texts import item_text
from schemas.catalogue.item import CatalogueItem
from schemas.errors import DataError
from schemas.settings import EventSettings
from workers.catalogue.view import Entry
from workers.data.catalogue import read_items


def read(text: str) -> tuple[list[tuple[str, CatalogueItem | None]], Account]:
    account = Account("standard input")
    stdin = io.BufferedReader(io.BytesIO(text.encode()))
    return list(read_items("-", account, EventSettings(), stdin)), account


def test_items_of_a_file_read_as_a_fit_reads_them() -> None:
    found, account = read(
        '{"item_id": 7, "title": "Shoe", "attributes": ["red", "leather"], "available": false, "price": 9}\n'
        '{"asin": "8", "name": "Hat", "brand": "Hatter", "labels": ["new"]}\n{"item_id": "9", "removed": true}\n')
    assert account.left_out == 0
    assert [name for name, _ in found] == ["7", "8", "9"]
    first, second, third = (item for _, item in found)
    assert first is not None
    assert second is not None
    assert Entry.of(first, 1) == Entry("7", 1, "Shoe", item_text("Shoe", ["red", "leather"]), False, (), 9.0)
    assert Entry.of(second, 1).text == item_text("Hat", "Hatter")
    assert second.labels == ["new"]
    assert third is None


def test_a_table_of_items() -> None:
    found, account = read("item_id,title,price,available\n1,Shoe,2.5,true\n2,Hat,,0\n3,Cap,cheap,\n")
    assert [(item.item_id, item.price, item.available) for _, item in found if item] == [
        ("1", 2.5, True), ("2", None, False)]
    assert list(account.skipped) == ["price: Input should be a valid number, unable to parse string as a number"]


def test_rows_without_an_id_are_counted_and_a_file_without_a_column_for_it_is_refused() -> None:
    found, account = read('{"item_id": "1"}\n{"title": "who"}\n')
    assert [name for name, _ in found] == ["1"]
    assert account.left_out == 1
    with pytest.raises(DataError, match="no column for the item's id"):
        read("title,price\nShoe,2\n")
