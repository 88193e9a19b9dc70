"""What the pages show as code: fenced blocks with their class, and commands within sentences and tables.

A block says by the comment before it how it is checked:

    <!-- test: run -->       a reader can run it: a test does, against an embedded stack, in the order of the page
    <!-- test: parse -->     too long, or needs servers: every command in it exists and takes these arguments
    <!-- test: settings -->  variables or a table of settings: all exist
    <!-- test: compose -->   goes into docker-compose.override.yml

Tables of settings (TOML) and messages (JSON, one a line) need no comment. Blocks of the language `text`
are no commands. There is no other kind, and no code by indentation.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
# The changelog is history: commands that are gone may stand there.
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
KINDS = {"run": {"sh", "python"}, "parse": {"sh"}, "settings": {"sh", "toml"}, "compose": {"yaml"},
         "message": {"json"}}
IMPLIED = {"toml": "settings", "json": "message"}
_COMMENT = re.compile(r"<!-- test: (\w+) -->")
_COMMAND = re.compile(r"(?:[A-Z_]+=\S+ )*(?:\.venv/bin/)?(?:freshet|make|docker compose|python -m|kubectl) \S")


@dataclass(frozen=True)
class Block:
    """A block of code; `kind` is "" where no comment says it."""

    page: str
    line: int
    language: str
    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


@cache
def blocks() -> list[Block]:
    return [block for page in PAGES for block in found(page.relative_to(ROOT).as_posix(), page.read_text())]


def found(page: str, text: str) -> Iterator[Block]:
    """Yield the blocks of a page; code by indentation has the language "indented"."""
    kind = ""
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        if token.type in ("fence", "code_block"):
            language = "indented" if token.type == "code_block" else token.info
            kind = kind or IMPLIED.get(language, "")
            yield Block(page, (token.map or [0])[0] + 1, language, kind, token.content)
            kind = ""
        elif token.type == "html_block" and (comment := _COMMENT.fullmatch(token.content.strip())):
            kind = comment[1]
        else:
            kind = ""


def mentions() -> Iterator[tuple[str, str]]:
    """Yield the commands within text: page with line, command."""
    for page in PAGES:
        for token in MarkdownIt("commonmark").enable("table").parse(page.read_text()):
            for child in token.children or ():
                if child.type == "code_inline" and _COMMAND.match(child.content):
                    yield f"{page.relative_to(ROOT)}:{(token.map or [0])[0] + 1}", child.content


def lines(text: str) -> list[str]:
    """Return the commands of a shell block, with continued lines joined."""
    return [line for line in text.replace("\\\n", " ").splitlines() if line.strip() and not line.startswith("#")]
