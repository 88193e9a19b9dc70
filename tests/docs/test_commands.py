"""Every command of README, CONTRIBUTING and docs exists and takes the arguments it is shown with."""

from __future__ import annotations

import tomllib

import orjson
import pytest
import yaml

from schemas.settings import load
from tests.docs.blocks import KINDS, Block, blocks, found, lines, mentions
from tests.docs.commands import COMPOSE, WrongCommandError, check, check_variable


def of(*kinds: str) -> list[Block]:
    return [block for block in blocks() if block.kind in kinds]


@pytest.mark.parametrize("block", blocks(), ids=str)
def test_every_block_says_how_it_is_checked(block: Block) -> None:
    if block.language != "text":
        assert block.kind in KINDS, f"{block}: put a comment of tests/docs/blocks.py before it, or make it `text`"
        assert block.language in KINDS[block.kind], f"{block}: {block.kind} is for {KINDS[block.kind]}"


@pytest.mark.parametrize("block", of("run", "parse"), ids=str)
def test_every_command_of_a_block_exists(block: Block) -> None:
    for line in lines(block.text) if block.language == "sh" else ():
        check(line, whole=True)


@pytest.mark.parametrize("block", of("settings"), ids=str)
def test_every_setting_of_a_block_exists(block: Block, tmp_path, monkeypatch) -> None:
    if block.language == "toml":
        (tmp_path / "freshet.toml").write_text(block.text)
        load({}, tmp_path / "freshet.toml")
        tomllib.loads(block.text)
        return
    for line in lines(block.text):
        check_variable(line.partition("=")[0])


@pytest.mark.parametrize("block", of("message"), ids=str)
def test_every_message_of_a_block_is_one(block: Block) -> None:
    for line in lines(block.text):
        assert isinstance(orjson.loads(line), dict)


@pytest.mark.parametrize("block", of("compose"), ids=str)
def test_what_is_added_to_compose_fits_it(block: Block) -> None:
    added = yaml.safe_load(block.text)
    assert set(added) <= {"services", "secrets", "volumes"}
    assert set(added["services"]) <= set(COMPOSE["services"])


def test_every_command_within_a_sentence_exists() -> None:
    wrong = []
    for place, command in mentions():
        try:
            check(command, whole=False)
        except WrongCommandError as error:
            wrong.append(f"{place}: `{command}`: {error}")
    assert wrong == []


@pytest.mark.parametrize("line", [
    "freshet nothing", "freshet up --nothing", "freshet produce a.csv b.csv", ".venv/bin/freshet fit --date DIR",
    "make nothing", "make bench-price ARGS=--nothing", "python -m benchmarks.nothing.run",
    "FRESHET_NOTHING=1 freshet up", "docker compose --profile nothing up", "docker compose up nothing",
    ".venv/bin/python -m pytest tests/test_borders.py::test_nothing", "pip install 'freshet[nothing]'", "nothing"])
def test_a_wrong_command_is_found(line: str) -> None:
    with pytest.raises(WrongCommandError):
        check(line, whole=True)


def test_blocks_are_found_with_their_class() -> None:
    page = ("<!-- test: run -->\n```sh\na\n```\n\n```sh\nb\n```\n\ntext\n\n    c\n\n"
            "<!-- test: run -->\n\ntext\n\n```sh\nd\n```\n")
    assert [(block.language, block.kind, block.text) for block in found("page", page)] == [
        ("sh", "run", "a\n"), ("sh", "", "b\n"), ("indented", "", "c\n"), ("sh", "", "d\n")]
