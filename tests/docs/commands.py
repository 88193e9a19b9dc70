"""Is a command of a page one that exists and takes these arguments? Nothing is run but `make --dry-run`."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import tomllib
from functools import cache, partial

import typer
import yaml
from typer.exceptions import TyperException

from schemas.settings import CONFIG, rows
from tests.docs.blocks import ROOT
from workers.cli import app

SETTINGS = {name for row in rows() for name in (row.variable, row.file_variable) if name} | {CONFIG}
# Programs of others that pages name.
FOREIGN = {"sglang.launch_server"}
# Variables of others that pages set.
OTHERS = {"KAFKA_HOME", "OMP_NUM_THREADS", "TESTERS", "IMAGE_TAG"}
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


class WrongCommandError(Exception):
    """A command does not exist, or not with these arguments."""


def check(line: str, *, whole: bool) -> None:
    """Check a command line.

    Args:
        whole: it is complete. If not (in a sentence), arguments may be missing.

    Raises:
        WrongCommandError: it is wrong; the text says what.
    """
    words = shlex.split(line, comments=True)
    while words and re.fullmatch(r"[A-Z_][A-Z0-9_]*=.*", words[0], re.DOTALL):
        check_variable(words.pop(0).partition("=")[0])
    if not words:
        return
    program, *arguments = words
    program = program.removeprefix(".venv/bin/")
    if program == "freshet":
        check_freshet(arguments, whole=whole)
    elif program == "make":
        check_make(arguments)
    elif program == "python" and arguments[:1] == ["-m"]:
        check_module(arguments[1], arguments[2:])
    elif [program, *arguments[:1]] == ["docker", "compose"]:
        check_compose(arguments[1:])
    elif program == "pip" and arguments[0] == "install":
        check_install(arguments[1:])
    elif program == "cp":
        require((ROOT / arguments[0]).exists(), f"there is no {arguments[0]}")
    elif program == "kubectl":
        if "apply" in arguments:
            option, path = arguments[-2:]
            file = ROOT / path / ("kustomization.yaml" if option == "-k" else "")
            require(file.is_file(), f"there is nothing to apply in {path}")
    else:
        raise WrongCommandError(f"{program} is no command that this test knows")


def require(condition: object, text: str) -> None:
    if not condition:
        raise WrongCommandError(text)


def check_variable(name: str) -> None:
    require(name in SETTINGS or name in OTHERS or name.startswith("OTEL_"), f"{name} is no setting")


command_of_freshet = cache(partial(typer.main.get_command, app))


def check_freshet(words: list[str], *, whole: bool) -> None:
    command = command_of_freshet()
    context = command.context_class(command, info_name="freshet")
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]
        context = command.context_class(command, parent=context, info_name=command.name)
    require(context.parent is not None, f"freshet has no command {words[:1]}")
    if whole:
        try:
            command.parse_args(context, list(words))
        except TyperException as error:
            # A file or folder of the reader's is not here.
            require("does not exist" in error.format_message(), error.format_message())
        return
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    for word in words:
        require(not word.startswith("--") or word.partition("=")[0] in known | {"--help"}, f"there is no {word}")


@cache
def dry_run(*words: str) -> str:
    """Return what `make` would run."""
    # Without the variables of an outer `make`, which would put its options and its name into the output.
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(["make", "--dry-run", "--old-file=.venv/installed", *words], cwd=ROOT, env=environ,
                          capture_output=True, text=True, check=False)
    require(done.returncode == 0, done.stderr)
    return done.stdout


def check_make(words: list[str]) -> None:
    for line in dry_run(*words).replace("\\\n", " ").splitlines():
        if line.startswith((".venv/bin/freshet ", ".venv/bin/python -m ", "OMP_NUM_THREADS=1 ")):
            check(line, whole=True)


@cache
def options(module: str) -> frozenset[str]:
    """Return the options that a module of ours takes."""
    path = (ROOT / module.replace(".", "/")).with_suffix(".py")
    require(path.is_file(), f"there is no module {module}")
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    return frozenset(
        argument.value for call in calls if getattr(call.func, "attr", "") == "add_argument"
        for argument in call.args if isinstance(argument, ast.Constant) and isinstance(argument.value, str))


def check_module(module: str, words: list[str]) -> None:
    if module == "pytest":
        for word in words:
            path, _, test = word.partition("::")
            if path.startswith("tests/"):
                require((ROOT / path).is_file() and f"def {test}(" in (ROOT / path).read_text(), f"there is no {word}")
    elif module == "pip":
        check_install(words[1:])
    elif module not in FOREIGN:
        known = options(module)
        for word in words:
            if word.startswith("--"):
                require(word.partition("=")[0] in known | {"--help"}, f"{module} has no option {word}")


def check_install(words: list[str]) -> None:
    for word in words:
        if extra := re.search(r"\[(\w+)\]$", word):
            require(extra[1] in EXTRAS, f"there is no extra {extra[1]}")


def check_compose(words: list[str]) -> None:
    profiles = {profile for service in COMPOSE["services"].values() for profile in service.get("profiles", ())}
    while words and words[0].startswith("--"):
        option = words.pop(0)
        require(option == "--profile" and words[0] in profiles, f"no profile {words[:1]}")
        words.pop(0)
    known = {"build", "config", "down", "exec", "logs", "ps", "run", "up"}
    require(words and words[0] in known, f"docker compose {words[:1]}")
    for word in words[1:]:
        if word.startswith("-") or word in ("freshet", "doctor") or "=" in word or "/" in word:
            continue
        require(word in COMPOSE["services"] or not re.fullmatch(r"[a-z-]+", word), f"no service {word}")
        if words[0] in ("run", "exec"):
            break  # what follows is the command in the container
