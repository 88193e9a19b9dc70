"""The folders are the architecture: who may import what, read off the source."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = {"schemas", "models", "streams", "workers"}
BORDERS = {
    "schemas": OURS - {"schemas"} | {"torch", "transformers", "kafka", "confluent_kafka", "aiokafka", "faust",
                                     "qdrant_client", "qdrant_edge"},
    "models": {"streams", "workers", "kafka", "confluent_kafka", "aiokafka", "faust", "qdrant_client", "qdrant_edge"},
    "streams": {"models", "workers", "torch", "transformers", "peft", "qdrant_client", "qdrant_edge"},
}
NOWHERE = {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("package", sorted(BORDERS))
def test_a_package_keeps_its_borders(package):
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    crossed = {str(path.relative_to(ROOT)): found for path in files if (found := imports(path) & BORDERS[package])}
    assert not crossed


def test_nothing_unpickles_or_evaluates():
    for package in OURS:
        for path in (ROOT / package).rglob("*.py"):
            assert not imports(path) & NOWHERE, path
            calls = {node.func.id for node in ast.walk(ast.parse(path.read_text()))
                     if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
            assert not calls & {"eval", "exec"}, path
            methods = {ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text()))
                       if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)}
            assert not methods & {"torch.load", "torch.save", "torch.jit.load"}, path
