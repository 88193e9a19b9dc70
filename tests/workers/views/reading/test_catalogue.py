"""Items of the version in use, as the console shows and finds them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from tests.workers.fitted import N, publish, settings_in
from tests.workers.views.reading.sent import item, record
from workers.views.reading import tables
from workers.views.reading.catalogue import NEIGHBOURS, ShownItems
from workers.views.reading.folding import ViewsFold
from workers.views.reading.recent import Recent
from workers.views.reading.tables import Tables


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    publish(settings_in(home), "v1")
    return home


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Tables]:
    made = Tables(tmp_path / "console")
    yield made
    made.close()


@pytest.fixture
def items(home: Path, held: Tables) -> ShownItems:
    found = ShownItems(home, held)
    found.follow()
    return found


def test_titles_and_rows_are_those_of_the_version(items):
    assert items.model_version == "v1"
    assert (items.title("i3"), items.title("nothing")) == ("3 things", "")
    assert items.named(4, 0.5).item_id == "i4"
    assert items.named(N, 0.5) is None
    assert items.calibration is not None


def test_neighbours_by_behaviour_are_other_items_the_strongest_first(items):
    found = items.by_behaviour(3)
    assert 0 < len(found) <= NEIGHBOURS
    assert "i3" not in {one.item_id for one in found}
    scores = [one.score for one in found]
    assert scores == sorted(scores, reverse=True)
    assert min(scores) > 0


def test_what_the_topic_says_of_an_item_goes_before_the_version(items, held):
    fold = ViewsFold(held, Recent())
    assert items.title("i3") == "3 things"
    fold.fold([record(item("i3", title="Renamed")), record(item("new", title="New thing"))])
    items.forget_titles()
    assert (items.title("i3"), items.title("new")) == ("Renamed", "New thing")
    assert [one.item_id for one in items.search("thing new", 9, 5.0)] == ["new"]
    assert [one.item_id for one in items.search("renamed", 9, 5.0)] == ["i3"]
    assert "i3" not in [one.item_id for one in items.search("3 things", 9, 5.0)]


@pytest.mark.parametrize(("text", "found"), [
    ("i7", ["i7"]), ("things 29", ["i29"]), ("THINGS 29", ["i29"]), ("no such", []), ("", []), ("  ", []),
    ("\x00", []), ("<b>", [])])
def test_items_are_found_by_id_and_by_words(items, text, found):
    assert [one.item_id for one in items.search(text, 9, 5.0)] == found


def test_a_search_is_bounded(items):
    assert len(list(items.search("things", 5, 5.0))) == 5
    assert list(items.search("things", 5, -1.0)) == []


def test_another_version_replaces_the_items(home, held, tmp_path):
    other = tmp_path / "home"
    publish(settings_in(other), "v1")
    found = ShownItems(other, held)
    found.follow()
    folder = other / "models" / "v1"
    card = orjson.loads((folder / "card.json").read_bytes())
    publish(settings_in(other), "v2", created_at=1.0)
    found.follow()
    assert (found.model_version, found.title("i3"), card["model_version"]) == ("v2", "3 things", "v1")


def test_a_version_that_cannot_be_read_changes_nothing(home, held, tmp_path):
    other = tmp_path / "home"
    publish(settings_in(other), "v1")
    found = ShownItems(other, held)
    found.follow()
    publish(settings_in(other), "v2", created_at=1.0)
    (other / "models" / "v2" / "texts.json").write_bytes(b"[]")
    found.follow()
    assert (found.model_version, found.title("i3")) == ("v1", "3 things")
    assert "texts.json" in found.problem


def test_without_a_model_nothing_is_known(held, tmp_path):
    found = ShownItems(tmp_path, held)
    found.follow()
    assert found.problem
    assert (found.title("i3"), found.by_behaviour(1), found.dim, found.encoding) == ("", (), 0, 0)
    assert held.read(tables.ITEM, b"i3") is None
