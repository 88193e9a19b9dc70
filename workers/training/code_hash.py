"""Hashes of code. A cached result stays valid as long as the code that computed it has the same hash.

Comments, docstrings and formatting do not count. A changed word in a docstring once cost 40 minutes of training.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]  # root of the repository; packages are named relative to it
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def parsed(text: str) -> ast.Module:
    """Parse Python code and remove its docstrings."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            node.body[0] = ast.Pass()
    return tree


def hash_of(paths: Iterable[Path]) -> str:
    """Return a hash of the parsed Python files, in the given order."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(ast.dump(parsed(path.read_text())).encode())
    return digest.hexdigest()


def files_of(*places: str, root: Path | None = None) -> list[Path]:
    """Return the Python files of packages (with sub-packages) and of single modules, in a fixed order.

    Args:
        places: paths relative to the root, such as `models` or `workers/training/fit.py`.
        root: None = the repository.

    Raises:
        FileNotFoundError: a place has no Python file, so it would silently be missing from a key.
    """
    found: list[Path] = []
    for place in places:
        path = (root or ROOT) / place
        files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
        if not files or not files[0].is_file():
            raise FileNotFoundError(f"no Python code at {path}")
        found += files
    return found


def closure(module: str, root: Path | None = None) -> list[Path]:
    """Return the files of a module and of all modules of its top-level package that it imports, directly or indirectly.

    Args:
        module: dotted name, such as `models.scorers.training`.
        root: None = the repository.
    """
    root = root or ROOT
    package = module.split(".", maxsplit=1)[0]
    found: dict[str, Path] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = _file_of(name, root)
        if name in found or path is None:  # a name inside a module; the module itself is in the list too
            continue
        found[name] = path
        waiting += [parent for parent in _parents(name) if parent != package]
        for node in ast.walk(ast.parse(path.read_text())):
            names: list[str] = []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            waiting += [name for name in names if name.startswith(f"{package}.")]
    return [found[name] for name in sorted(found)]


def _file_of(module: str, root: Path) -> Path | None:
    base = root.joinpath(*module.split("."))
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


def _parents(module: str) -> list[str]:
    """Return the packages that Python imports before a module."""
    parts = module.split(".")
    return [".".join(parts[:depth]) for depth in range(1, len(parts))]
