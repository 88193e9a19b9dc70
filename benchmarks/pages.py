"""Generated sections of documentation pages."""

from __future__ import annotations

from pathlib import Path


def fill(page: Path, section: str, text: str) -> None:
    """Put `text` between the markers of a section, `<!-- section: begin -->` and `<!-- section: end -->`.

    Nothing else is touched, so a page may hold sections of several runs. A page without the section stays as it is:
    a new data set is shown once somebody has said where.
    """
    begin, end = (f"<!-- {section}: {which} -->" for which in ("begin", "end"))
    before, found, rest = page.read_text().partition(begin)
    _, closed, after = rest.partition(end)
    if found and closed:
        page.write_text(f"{before}{begin}\n{text}\n{end}{after}")
