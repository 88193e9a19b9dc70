"""Words about code change no hash of it, the code does; a closure is a module with what it imports."""

from __future__ import annotations

from pathlib import Path

import pytest

from workers.code import closure, hash_of

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
def test_only_what_code_does_counts(tmp_path: Path, old: str, new: str, same: bool) -> None:
    assert old in CODE
    text = CODE.replace(old, new)
    if old.startswith("        "):
        text = CODE.replace(old, "        pass\n")  # a docstring counts as much as nothing does
    assert (hashed(tmp_path, CODE) == hashed(tmp_path, text)) == same


def test_a_text_that_is_no_docstring_counts(tmp_path: Path) -> None:
    assert hashed(tmp_path, "name = 1\n'first'") != hashed(tmp_path, "name = 1\n'second'")


def test_a_closure_follows_imports_wherever_they_stand(tmp_path: Path) -> None:
    shop = tmp_path / "shop"
    shop.mkdir()
    (shop / "till.py").write_text("from shop import prices\nfrom shop.coins import ALL\nimport json")
    (shop / "prices.py").write_text("def tax():\n    from shop.law import RATE\n    return RATE")
    (shop / "coins.py").write_text("from shop.till import Till")
    (shop / "law.py").write_text("RATE = 1")
    (shop / "doors.py").write_text("")
    assert [path.stem for path in closure("till", shop)] == ["coins", "law", "prices", "till"]
