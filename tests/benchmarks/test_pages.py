from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.pages import fill


def test_fill_replaces_only_its_section(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- a: begin -->\nold\n<!-- a: end -->\nbetween\n"
                    "<!-- b: begin --><!-- b: end -->\nafter\n")
    fill(page, "a", "new")
    fill(page, "b", "first")
    assert page.read_text() == (
        "before\n<!-- a: begin -->\nnew\n<!-- a: end -->\nbetween\n<!-- b: begin -->\nfirst\n<!-- b: end -->\nafter\n")
    fill(page, "a", "new")
    assert page.read_text().count("new") == 1


def test_fill_appends_a_new_section(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("text\n")
    fill(page, "a", "old")
    fill(page, "a", "new")
    assert page.read_text() == "text\n\n<!-- a: begin -->\nnew\n<!-- a: end -->\n"


def test_a_section_without_an_end_is_an_error_and_changes_nothing(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- a: begin -->\ntext that nobody generated\n")
    with pytest.raises(ValueError, match="no <!-- a: end"):
        fill(page, "a", "new")
    assert "nobody" in page.read_text()
