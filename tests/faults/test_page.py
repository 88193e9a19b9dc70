"""The page of faults names tests and commands that exist, and every kind of action."""

from __future__ import annotations

import re

from tests.faults.actions import FIXED
from tests.workers.brokers import ROOT

PAGE = (ROOT / "docs" / "reliability.md").read_text()


def test_every_test_on_the_page_exists():
    names = re.findall(r"`(tests/[\w/]+(?:\.py)?)((?:::\w+)*)`", PAGE)
    assert len(names) > 30
    for path, parts in names:
        target = ROOT / path
        assert target.exists(), path
        for part in parts.split("::")[1:]:
            assert re.search(rf"(def|class) {part}\b", target.read_text()), f"{path}::{part}"


def test_every_command_on_the_page_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"`make ([a-z-]+)", PAGE))
    assert named
    assert named <= targets


def test_the_page_has_every_kind_of_action():
    for action in {action["do"] for sequence in FIXED for action in sequence}:
        assert f"`{action}" in PAGE, action
