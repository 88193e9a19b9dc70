"""Hashes of code: what was computed before may be used again while the code that made it means the same.

Comments, docstrings and layout do not count. A word in a docstring once cost forty minutes of training.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable
from pathlib import Path

_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def parsed(text: str) -> ast.Module:
    """Return Python code without its docstrings."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            node.body[0] = ast.Pass()
    return tree


def hash_of(paths: Iterable[Path]) -> str:
    """Return a hash of what Python files do, in the order given."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(ast.dump(parsed(path.read_text())).encode())
    return digest.hexdigest()


def closure(module: str, folder: Path) -> list[Path]:
    """Return the files of a module of a package and of all that it imports from there, at whatever place.

    Args:
        module: name within the package.
        folder: of the package, whose name it has.
    """
    paths = {module: folder / f"{module}.py"}
    waiting = [module]
    while waiting:
        for node in ast.walk(ast.parse(paths[waiting.pop()].read_text())):
            names: list[str] = []
            if isinstance(node, ast.ImportFrom) and node.module == folder.name:
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{folder.name}."):
                names = [(node.module or "").split(".")[1]]
            for name in names:
                if name not in paths and (folder / f"{name}.py").is_file():
                    paths[name] = folder / f"{name}.py"
                    waiting.append(name)
    return [paths[name] for name in sorted(paths)]
