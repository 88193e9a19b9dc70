"""Build the documentation site: stage the pages, then let Zensical make HTML of them and refuse broken links.

    python docs/site.py    # writes build/site

Pages outside docs/ (README, contributing, changelog, licence) get a place in the site, all of examples/ makes one page,
and links between pages are changed to fit. Zensical checks links to pages and headings. What it passes over, links to
other files and pictures that are not there, is an error here.
"""

from __future__ import annotations

import posixpath
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
# File of the repository → its page in the site. Files of docs/ keep their names.
OUTSIDE = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md",
           "LICENSE": "license.md", "NOTICE": "notice.md"}
EXAMPLES = "examples.md"
_KEPT = {".md", ".svg", ".png", ".json"}
# [text](target) and ![text](target "title"); code is left alone by _PARTS.
_LINK = re.compile(r"(\]\()([^)\s]+)")
_PARTS = re.compile(r"(^```.*?^```[^\n]*$|`[^`\n]*`)", re.MULTILINE | re.DOTALL)


class BrokenLinkError(Exception):
    """A page links to what the site does not have."""


def pages() -> dict[str, Path]:
    """Return what the site is made of: place in the site → file."""
    folder = ROOT / "docs"
    found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.suffix in _KEPT}
    return found | {place: ROOT / name for name, place in OUTSIDE.items()}


def examples() -> list[Path]:
    """Return the examples, which are one page together."""
    return sorted((ROOT / "examples").glob("[!_]*.py"))


def page_of_examples() -> str:
    """Return a page with the code of all examples."""
    parts = ["# Examples\n\nEach is one file, and a test runs it."]
    for path in examples():
        parts.append(f"## {path.name} {{ #{path.stem} }}\n\n````python\n{path.read_text().rstrip()}\n````")
    return "\n\n".join(parts) + "\n"


def moved(source: str, target: str) -> str:
    """Return a link as it must read in the site.

    Args:
        source: file of the repository that has the link, relative to its root.
        target: the link as it stands there.

    Raises:
        BrokenLinkError: the target is not part of the site.
    """
    if re.match(r"[a-z]+:", target) or target.startswith("#"):
        return target
    path, mark, anchor = target.partition("#")
    file = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
    place = OUTSIDE.get(file, file.removeprefix("docs/") if file.startswith("docs/") else "")
    if (ROOT / file) in examples():
        place, mark, anchor = EXAMPLES, "#", (ROOT / file).stem
    elif place not in pages():
        raise BrokenLinkError(f"{source}: {target} is not part of the site")
    here = OUTSIDE.get(source, source.removeprefix("docs/"))
    return posixpath.relpath(place, posixpath.dirname(here) or ".") + mark + anchor


def staged(source: str, text: str) -> str:
    """Return a page's text with its links changed; `source` as in `moved`."""
    if not source.endswith(".md"):
        return f"# {source.capitalize()}\n\n```text\n{text.rstrip()}\n```\n"
    parts = _PARTS.split(text)
    parts[::2] = [_LINK.sub(lambda link: link[1] + moved(source, link[2]), part) for part in parts[::2]]
    return "".join(parts)


def stage(folder: Path) -> None:
    """Write all pages into `folder`, which is emptied first."""
    shutil.rmtree(folder, ignore_errors=True)
    for place, path in pages().items():
        target = folder / place
        target.parent.mkdir(parents=True, exist_ok=True)
        if place.endswith(".md"):
            target.write_text(staged(path.relative_to(ROOT).as_posix(), path.read_text()))
        else:
            shutil.copy(path, target)
    (folder / EXAMPLES).write_text(page_of_examples())


def main() -> int:
    """Build the site; return the exit code."""
    try:
        stage(ROOT / "build" / "pages")  # both folders as in zensical.toml
    except BrokenLinkError as error:
        print(error, file=sys.stderr)
        return 1
    made = ROOT / "build" / "site"
    shutil.rmtree(made, ignore_errors=True)
    done = subprocess.run([sys.executable, "-m", "zensical", "build", "--strict", "--clean", "-f", "zensical.toml"],
                          cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        # Zensical's findings end with a traceback of its own, which says nothing.
        print((done.stdout + done.stderr).partition("Traceback")[0], file=sys.stderr)
        return 1
    print(f"{made / 'index.html'}: {len(list(made.rglob('*.html')))} pages")
    return 0


if __name__ == "__main__":
    sys.exit(main())
