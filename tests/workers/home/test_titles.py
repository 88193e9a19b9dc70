from pathlib import Path

import orjson
import pytest

from schemas.artifacts import Card, Registry, write_card
from workers.home.titles import TITLES, Titles, read_titles, write_titles

KNOWN = Titles({"50": "Star Wars (1977)", "100": "Fargo (1996)", "7": ""})


def published(home: Path, **files: object) -> Path:
    registry = Registry(home)
    with registry.publish("v1") as folder:
        for name, content in files.items():
            (folder / f"{name}.json").write_bytes(orjson.dumps(content))
        write_card(folder, Card(model_version="v1", created_at=0, data_hash="", settings={}, split_time=0, files={}))
    registry.select("v1")
    return registry.folder / "v1"


def test_an_item_without_a_title_goes_by_its_id() -> None:
    assert KNOWN.names(["50", "7", "x"]) == "Star Wars (1977) [50], 7, x"
    assert [KNOWN.title(item) for item in ("100", "7", "x")] == ["Fargo (1996)", "7", "x"]


def test_newer_titles_go_first() -> None:
    assert KNOWN.joined({"50": "Star Wars, restored", "x": "X"}).names(["50", "100", "x"]) == (
        "Star Wars, restored [50], Fargo (1996) [100], X [x]")


def test_titles_are_read_from_the_model_in_use(tmp_path: Path) -> None:
    published(tmp_path, items=["50", "7"], titles=["Dr. Strangelove", ""], texts=["Dr. Strangelove. War", "7"])
    assert read_titles(tmp_path).names(["50", "7"]) == "Dr. Strangelove [50], 7"


def test_a_version_of_an_earlier_release_has_texts_alone(tmp_path: Path) -> None:
    published(tmp_path, items=["50", "7", "9"], texts=["Star Wars (1977). Sci-Fi", "", "many words " * 9])
    titles = read_titles(tmp_path)
    assert titles.names(["50", "7"]) == "Star Wars (1977). Sci-Fi [50], 7"
    assert titles.title("9").endswith("many …")
    assert len(titles.title("9")) <= 52


@pytest.mark.parametrize("files", [{}, {"items": ["1"]}, {"items": ["1"], "titles": []}, {"items": 1, "titles": 2},
                                   {"items": [[1]], "titles": ["a"]}])
def test_without_readable_files_ids_do(tmp_path: Path, files: dict[str, object]) -> None:
    assert read_titles(tmp_path).name("1") == "1"
    published(tmp_path, **files)
    assert read_titles(tmp_path).name("1") == "1"


def test_nothing_is_written_where_no_item_has_a_title(tmp_path: Path) -> None:
    write_titles(tmp_path, ["", ""])
    assert not (tmp_path / TITLES).exists()
    write_titles(tmp_path, ["a", ""])
    assert orjson.loads((tmp_path / TITLES).read_bytes()) == ["a", ""]


def test_titles_stand_beside_ids_and_ids_stay() -> None:
    record = {"user_id": "50", "items": [{"item_id": "50", "score": -1.0}], "reference": ["100", "x"], "count": 3}
    assert KNOWN.beside(record) == {
        "user_id": "50", "items": [{"item_id": "50", "title": "Star Wars (1977)", "score": -1.0}],
        "reference": ["100", "x"], "reference_titles": ["Fargo (1996)", ""], "count": 3}


@pytest.mark.parametrize(("value", "names"), [
    (b'{"userId": "100", "productId": 50}', "Star Wars (1977) [50]"),
    (b'{"user_id": "50", "history": ["100", "x", "100"]}', "Fargo (1996) [100]"),
    (b'{"margins": [{"item_id": "50"}]}', "Star Wars (1977) [50]"),
    (b"not json", ""), (b"[]", ""), (b'{"item_id": "x"}', ""), (b"[" * 1000 + b"]" * 1000, ""),
])
def test_the_items_that_a_record_names(value: bytes, names: str) -> None:
    assert KNOWN.within(value) == names


def test_a_deep_record_is_left_as_it_is() -> None:
    record = orjson.loads(b'{"a":' * 900 + b"1" + b"}" * 900)
    assert KNOWN.beside(record) == record
