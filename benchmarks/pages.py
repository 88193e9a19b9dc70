"""Generated sections of documentation pages."""

from __future__ import annotations

from pathlib import Path


def fill(page: Path, section: str, text: str) -> None:
    """Replace the text between `<!-- section: begin -->` and `<!-- section: end -->`.

    The rest of the page stays, so a page can have sections of several benchmarks. A new section is appended.

    Raises:
        ValueError: a section has no end marker.
    """
    begin, end = (f"<!-- {section}: {which} -->" for which in ("begin", "end"))
    before, opened, rest = page.read_text().partition(begin)
    _, closed, after = rest.partition(end)
    if opened and not closed:
        raise ValueError(f"{page} has {begin} but no {end}")
    if not opened:
        before, after = f"{before.rstrip()}\n\n", "\n"
    page.write_text(f"{before}{begin}\n{text}\n{end}{after}")
