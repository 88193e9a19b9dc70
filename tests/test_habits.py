"""What people run by hand, by hook and in CI is the same, and the guide for contributors names what is there."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import tomllib
from functools import cache
from pathlib import Path

import pytest
import yaml

from tests.test_borders import ORDER

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "CONTRIBUTING.md").read_text()
GROUPS = ["First steps", "Tests and checks", "Benchmarks", "Housekeeping"]
# Without the variables of an outer `make`, which would put its options and its name into the output.
ENVIRON = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}


@cache
def make(*arguments: str) -> str:
    done = subprocess.run(["make", *arguments], cwd=ROOT, env=ENVIRON, capture_output=True, text=True, check=True)
    return done.stdout


def recipe(target: str) -> list[str]:
    """The commands of a target, but for those that set the environment up."""
    return make("--dry-run", "--old-file=.venv/installed", target).splitlines()


def phony() -> list[str]:
    text = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    return re.search(r"^\.PHONY:(.*)$", text, re.MULTILINE).group(1).split()


BENCHMARKS = [target for target in phony() if target.startswith("bench-")]


def defined(path: Path) -> set[str]:
    """Functions of a file, also those within functions, and methods as Class.method."""
    tree = ast.parse(path.read_text())
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    names = {node.name for node in ast.walk(tree) if isinstance(node, kinds)}
    return names | {f"{one.name}.{node.name}" for one in ast.walk(tree) if isinstance(one, ast.ClassDef)
                    for node in one.body if isinstance(node, kinds)}


def test_help_has_every_target_in_a_group_and_aligned():
    text = make()
    assert text == make("help")
    parts = [part.splitlines() for part in text.split("\n\n")]
    assert [title for title, *_ in parts] == GROUPS
    lines = [re.fullmatch(r"  ([a-z0-9-]+)( +)\S.*", line) for _, *part in parts for line in part]
    assert sorted(line[1] for line in lines) == sorted(phony())
    assert len({line.end(2) for line in lines}) == 1
    benchmarks = next(part for title, *part in parts if title == "Benchmarks")
    assert {line.split()[0] for line in benchmarks} == set(BENCHMARKS)


@pytest.mark.parametrize("target", BENCHMARKS)
def test_a_benchmark_target_runs_a_module_that_is_there(target):
    modules = re.findall(r"-m (benchmarks\.\S+)", "\n".join(recipe(target)))
    assert modules == [f"benchmarks.{target.removeprefix('bench-')}.run"]
    assert (ROOT / modules[0].replace(".", "/")).with_suffix(".py").is_file()


def test_every_benchmark_has_a_target():
    assert {f"bench-{path.parent.name}" for path in ROOT.glob("benchmarks/*/run.py")} == set(BENCHMARKS)


def test_hooks_run_what_lint_runs_and_the_border_test():
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repository["repo"] == "local"  # nothing to fetch
    hooks = repository["hooks"]
    assert [hook["entry"] for hook in hooks] == [
        *recipe("lint"), ".venv/bin/python -m pytest -q tests/test_borders.py"]
    assert len({hook["id"] for hook in hooks}) == len(hooks)
    for hook in hooks:
        assert set(hook) == {"id", "name", "language", "entry", "pass_filenames", "always_run"}
        assert (hook["language"], hook["pass_filenames"], hook["always_run"]) == ("system", False, True)


def test_the_image_has_what_the_package_names_before_it_is_installed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    build = (ROOT / "deploy" / "Dockerfile").read_text().split("RUN pip install --no-cache-dir -c")[0]
    copied = {name for line in re.findall(r"^COPY (.+) \S+$", build, re.MULTILINE) for name in line.split()}
    # pip builds without a missing licence and says nothing
    assert {"pyproject.toml", project["readme"], *project["license-files"]} <= copied


def test_the_map_has_every_room_in_the_order_of_the_borders():
    rooms: dict[str, list[str]] = {}
    for line in GUIDE.split("```")[1].removeprefix("text").strip().splitlines():
        if line[0] != " ":
            package = line.split("/")[0]
        else:
            rooms.setdefault(package, []).append(line.split()[0].replace("/", "."))
    assert rooms == {package: list(order) for package, order in ORDER.items()}


def test_files_that_the_guide_names_are_there():
    named = re.findall(r"`((?:schemas|models|streams|workers|benchmarks|tests|docs|deploy)/[\w./-]*)`", GUIDE)
    assert len(named) > 40
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_the_functions_an_event_walks_through_are_where_the_guide_says():
    steps = re.findall(r"^\|[^|]*\| `([\w/]+\.py)` \| (`[^|]+`) \|$", GUIDE, re.MULTILINE)
    assert len(steps) > 20
    for path, names in steps:
        assert set(re.findall(r"`([\w.]+)`", names)) <= defined(ROOT / path), path
