from __future__ import annotations

from pathlib import Path

from benchmarks.pages import fill


def test_a_section_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- a: begin -->\nold\n<!-- a: end -->\nbetween\n"
                    "<!-- b: begin --><!-- b: end -->\nafter\n")
    fill(page, "a", "new")
    fill(page, "b", "first")
    fill(page, "c", "nowhere")
    assert page.read_text() == (
        "before\n<!-- a: begin -->\nnew\n<!-- a: end -->\nbetween\n<!-- b: begin -->\nfirst\n<!-- b: end -->\nafter\n")
    fill(page, "a", "new")
    assert page.read_text().count("new") == 1


def test_half_a_section_is_none(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- a: begin -->\ntext that nobody generated\n")
    fill(page, "a", "new")
    assert "nobody" in page.read_text()
