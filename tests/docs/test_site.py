"""The documentation site: what is in it, where links lead, and that a broken one fails the build."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from docs.site import EXAMPLES, OUTSIDE, BrokenLinkError, examples, moved, pages, staged

ROOT = Path(__file__).parents[2]
CONFIG = tomllib.loads((ROOT / "zensical.toml").read_text())["project"]
needs_zensical = pytest.mark.skipif(
    importlib.util.find_spec("zensical") is None, reason="`make docs` installs Zensical and does the same")


def entries(nav: object) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    else:
        for entry in nav.values() if isinstance(nav, dict) else nav:  # type: ignore[attr-defined]
            yield from entries(entry)


def test_every_page_is_in_the_navigation_once_and_nothing_else_is() -> None:
    assert sorted(entries(CONFIG["nav"])) == sorted([EXAMPLES, *(place for place in pages() if place.endswith(".md"))])


@pytest.mark.parametrize(("source", "target", "place"), [
    ("README.md", "docs/flow.svg", "flow.svg"),
    ("README.md", "docs/operations.md#watch-it", "operations.md#watch-it"),
    ("README.md", "CONTRIBUTING.md", "contributing.md"),
    ("docs/drift.md", "../README.md#messages", "index.md#messages"),
    ("docs/drift.md", "judge.md", "judge.md"),
    ("docs/drift.md", "#limits", "#limits"),
    ("docs/messages.md", "schemas/judgements.json", "schemas/judgements.json"),
    ("docs/systems.md", "../examples/own_backbone.py", "examples.md#own_backbone"),
    ("CHANGELOG.md", "https://keepachangelog.com/", "https://keepachangelog.com/"),
])
def test_a_link_is_moved_with_its_page(source: str, target: str, place: str) -> None:
    assert moved(source, target) == place


@pytest.mark.parametrize("target", ["nowhere.md", "nowhere.svg", "../Makefile", "../tests/registry.py", "/etc/hosts"])
def test_a_link_out_of_the_site_is_an_error(target: str) -> None:
    with pytest.raises(BrokenLinkError, match=re.escape(f"docs/drift.md: {target}")):
        moved("docs/drift.md", target)


def test_code_is_left_alone() -> None:
    text = "`[a](nowhere.md)` [b](docs/drift.md)\n```sh\n[c](nowhere.md)\n```\n"
    assert staged("README.md", text) == text.replace("docs/drift.md", "drift.md")


def copied(folder: Path) -> Path:
    for part in ("docs", "examples"):
        shutil.copytree(ROOT / part, folder / part)
    for name in (*OUTSIDE, "zensical.toml"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def build(root: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(root / "docs" / "site.py")], capture_output=True, text=True, timeout=100, check=False)


@needs_zensical
def test_the_site_is_built_whole_and_fetches_nothing(tmp_path: Path) -> None:
    done = build(copied(tmp_path))
    assert done.returncode == 0, done.stderr
    site = tmp_path / "build" / "site"
    assert all(f'id="{path.stem}"' in (site / "examples.html").read_text() for path in examples())
    for place in entries(CONFIG["nav"]):
        html = (site / place).with_suffix(".html").read_text()
        fetched = re.findall(r'<(?:script|link|img|iframe)[^>]*(?:src|href)="(https?:[^"]*)', html)
        assert fetched == [], place
        for picture in re.findall(r'<img[^>]*src="([^"]*)"', html):
            assert (site / place).parent.joinpath(picture).is_file(), f"{place}: {picture}"


@needs_zensical
@pytest.mark.parametrize("link", ["[x](nowhere.md)", "[x](drift.md#nowhere)", "![x](nowhere.svg)", "[x](#nowhere)"])
def test_a_broken_link_fails_the_build(tmp_path: Path, link: str) -> None:
    page = copied(tmp_path) / "docs" / "judge.md"
    page.write_text(f"{page.read_text()}\n{link}\n")
    done = build(tmp_path)
    assert done.returncode == 1
    assert "judge.md" in done.stderr
    assert "Traceback" not in done.stderr
