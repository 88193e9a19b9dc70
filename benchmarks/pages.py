"""Generated sections of documentation pages."""

from __future__ import annotations

from pathlib import Path


def fill(page: Path, section: str, text: str) -> None:
    """Put `text` between the markers of a section, `<!-- section: begin -->` and `<!-- section: end -->`.

    Nothing else is touched, so a page may hold sections of several runs. A new section comes last.

    Raises:
        ValueError: a section has no end.
    """
    begin, end = (f"<!-- {section}: {which} -->" for which in ("begin", "end"))
    before, found, rest = page.read_text().partition(begin)
    _, closed, after = rest.partition(end)
    if found and not closed:
        raise ValueError(f"{page} has {begin} and no {end}")
    if not found:
        before, after = f"{before.rstrip()}\n\n", "\n"
    page.write_text(f"{before}{begin}\n{text}\n{end}{after}")
