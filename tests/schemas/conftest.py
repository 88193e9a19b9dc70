"""A TOML file for the settings, and no other."""

from pathlib import Path

import pytest


@pytest.fixture
def toml(tmp_path, monkeypatch):
    """Write a TOML file; empty at first, and the only one: nothing is read from the folder the tests run in."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "of-the-test.toml"

    def write(text: str) -> Path:
        path.write_text(text, encoding="utf-8")
        return path

    write("")
    return write
