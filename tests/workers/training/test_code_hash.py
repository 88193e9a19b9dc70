"""A code hash ignores comments and docstrings but not code; a closure is a module with everything it imports."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.frontier.points import code_hash as frontier_code
from schemas.settings import LlmSettings, Settings
from workers.replay.generations import folder_of
from workers.training import code_hash
from workers.training.code_hash import closure, files_of, hash_of
from workers.training.evaluate import code_hash as evaluate_code
from workers.training.fit import fit_key
from workers.training.scorer_cache import code_of

CODE = '''"""What it is."""
from shop import prices


class Till:
    """Holds money."""

    def total(self, items: list[int]) -> int:
        """Add up."""
        return sum(items) + prices.TAX  # and tax
'''


def hashed(tmp_path: Path, text: str) -> str:
    path = tmp_path / "till.py"
    path.write_text(text)
    return hash_of([path])


@pytest.mark.parametrize(("old", "new", "same"), [
    ("Holds money.", "Holds coins.", True),
    ("  # and tax", "", True),
    ('        """Add up."""\n', "", True),
    ("sum(items)", "max(items)", False),
    ("TAX", "VAT", False),
    ("items: list[int]", "items: tuple[int]", False),
    ("def total", "def whole", False),
])
def test_only_code_changes_the_hash(tmp_path: Path, old: str, new: str, same: bool) -> None:
    assert old in CODE
    text = CODE.replace(old, new)
    if old.startswith("        "):
        text = CODE.replace(old, "        pass\n")  # a removed docstring must not count
    assert (hashed(tmp_path, CODE) == hashed(tmp_path, text)) == same


def test_a_string_that_is_not_a_docstring_counts(tmp_path: Path) -> None:
    assert hashed(tmp_path, "name = 1\n'first'") != hashed(tmp_path, "name = 1\n'second'")


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the repository's code that a test may change; the keys are computed from it."""
    for path in files_of("schemas", "models", "streams", "workers"):
        copy = tmp_path / path.relative_to(code_hash.ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    monkeypatch.setattr(code_hash, "ROOT", tmp_path)
    return tmp_path


def keys(home: Path) -> dict[str, str]:
    """The cache keys, by what they are for."""
    code_of.cache_clear()
    return {
        "fit": fit_key("data", Settings(home=home)),
        "evaluate": evaluate_code(),
        "generations": folder_of(home, "v1", LlmSettings()).name,
        "frontier": frontier_code(),
        "scorers": code_of("models.scorers.training"),
    }


WHOLE = {"fit", "evaluate", "generations", "frontier"}  # these hash all of models/


@pytest.mark.parametrize(("path", "changed"), [
    ("models/new_room/deeper/model.py", WHOLE),  # a sub-package of a sub-package
    ("models/systems/kar/written.py", WHOLE),
    ("models/scorers/backbone.py", WHOLE | {"scorers"}),
    ("streams/new_room/fold.py", {"fit", "frontier"}),
    ("workers/replay/new_room/play.py", {"frontier"}),
    ("workers/cli/doctor.py", set()),
    ("schemas/topics.py", set()),
    ("docs/page.md", set()),
])
def test_a_code_change_changes_exactly_the_keys_that_depend_on_it(
    copied: Path, path: str, changed: set[str],
) -> None:
    before = keys(copied)
    place = copied / path
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.open("a") as file:
        file.write("CHANGED = 1\n")
    after = keys(copied)
    assert {name for name in before if before[name] != after[name]} == changed


def test_every_file_of_models_and_streams_counts(copied: Path) -> None:
    files = {path.relative_to(copied) for path in files_of("models", "streams")}
    there = {path.relative_to(copied) for name in ("models", "streams") for path in (copied / name).rglob("*.py")}
    assert files == there
    assert len(files) > 80


def test_a_place_without_code_is_an_error_not_an_empty_key() -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        files_of("models/nowhere")


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def test_a_closure_follows_imports_inside_functions(tmp_path: Path) -> None:
    write(tmp_path, {
        "shop/__init__.py": "",
        "shop/till.py": "from shop import prices\nfrom shop.coins import ALL\nimport json",
        "shop/prices.py": "def tax():\n    from shop.law import RATE\n    return RATE",
        "shop/coins.py": "from shop.till import Till",
        "shop/law.py": "RATE = 1",
        "shop/doors.py": ""})
    assert [path.stem for path in closure("shop.till", tmp_path)] == ["coins", "law", "prices", "till"]


def test_a_closure_follows_imports_into_sub_packages(tmp_path: Path) -> None:
    write(tmp_path, {
        "shop/__init__.py": "",
        "shop/till/__init__.py": "from shop.floor import WOOD",
        "shop/till/drawer.py": "from shop.till import tray\nimport shop.back.safe",
        "shop/till/tray.py": "from shop.back.coins import ALL",
        "shop/till/bell.py": "",
        "shop/floor.py": "WOOD = 1",
        "shop/back/__init__.py": "",
        "shop/back/safe.py": "",
        "shop/back/coins.py": "ALL = 1",
        "shop/back/door.py": ""})
    assert [str(path.relative_to(tmp_path / "shop")) for path in closure("shop.till.drawer", tmp_path)] == [
        "back/__init__.py", "back/coins.py", "back/safe.py", "floor.py", "till/__init__.py", "till/drawer.py",
        "till/tray.py"]
