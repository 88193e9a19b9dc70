"""The folders are the architecture: who may import what, read off the source.

Between the top-level folders `BORDERS` says what is forbidden. Between the rooms of a folder `ORDER` is the whole
order, the ground last: a room imports rooms that stand after it, and only those that its docstring names.
"""

import ast
import re
from functools import cache
from graphlib import CycleError, TopologicalSorter
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
ORDER = {
    "models": (
        "aligning", "fitting", "serving", "systems", "systems.freshet", "systems.coco", "systems.grasp", "systems.kar",
        "systems.lwgr", "calibration", "evidence", "knowledge", "generative", "language", "scorers", "trust",
        "measuring", "compute", "data"),
    "streams": ("service", "calibration", "decisions", "registry", "profile", "detection"),
    "workers": (
        "cli", "demo", "console", "console.pages", "views", "replay", "training", "writing", "operating", "measurement",
        "supervision", "roles.alignment", "roles.knowledge", "roles.ranking", "roles", "runtime", "catalogue",
        "store.embedded", "store.banks", "store", "data", "kafka", "home", "terminal"),
}
ROOMY = 13  # files of a room, about a dozen, its __init__ not counted
NOWHERE = {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


def modules(package: str) -> dict[str, Path]:
    """The modules of a top-level folder by dotted name, packages among them."""
    found = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path
    return found


def imported(package: str) -> dict[str, set[str]]:
    """The modules of a folder that each of its modules imports, wherever in the file."""
    known = modules(package)
    graph: dict[str, set[str]] = {}
    for name, path in known.items():
        found = set()
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.ImportFrom) and node.module:
                assert not node.level, f"{path}: a relative import"
                whole = {f"{node.module}.{alias.name}" for alias in node.names}
                found |= (whole & known.keys()) or {node.module}
            elif isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
        graph[name] = {other for other in found & known.keys() if other != name}
    return graph


def room_of(module: str, path: Path) -> str:
    """The room of a module, without the name of its top-level folder; "" = that folder itself."""
    parts = module.split(".")
    return ".".join(parts[1:] if path.name == "__init__.py" else parts[1:-1])


def arrows(package: str) -> set[tuple[str, str]]:
    """Pairs of rooms of which the first imports the second."""
    known = modules(package)
    pairs = {(room_of(name, known[name]), room_of(other, known[other]))
             for name, others in imported(package).items() for other in others}
    return {(one, other) for one, other in pairs if one != other}


@pytest.mark.parametrize("package", sorted(BORDERS))
def test_a_package_keeps_its_borders(package):
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    crossed = {str(path.relative_to(ROOT)): found for path in files if (found := imports(path) & BORDERS[package])}
    assert not crossed


@pytest.mark.parametrize("package", sorted(ORDER))
def test_every_room_has_its_place(package):
    known = modules(package)
    rooms = {room_of(name, path) for name, path in known.items() if path.name != "__init__.py"}
    assert rooms == set(ORDER[package])


@pytest.mark.parametrize("package", sorted(ORDER))
def test_no_import_points_upwards(package):
    order = ORDER[package]
    found = arrows(package)
    assert len(found) >= len(order) - 1
    assert [(one, other) for one, other in sorted(found) if order.index(other) < order.index(one)] == []


@pytest.mark.parametrize("package", [*sorted(OURS), "benchmarks"])
def test_no_files_import_each_other_in_a_circle(package):
    graph = imported(package)
    assert graph
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle: {' → '.join(error.args[1])}")


@pytest.mark.parametrize("package", sorted(ORDER))
def test_a_room_says_what_it_is_and_whom_it_may_import(package):
    found = arrows(package)
    for room in ORDER[package]:
        text = ast.get_docstring(parsed(ROOT / package / room.replace(".", "/") / "__init__.py"))
        assert text, f"{package}.{room} does not say what lives there"
        said = re.search(r"May import: ([^\n]*(?:\n[^\n]+)*)\.\Z", text)
        assert said, f"{package}.{room} does not say whom it may import"
        allowed = set(re.split(r",\s+", said.group(1))) - {"–"}
        assert allowed == {other for one, other in found if one == room}, f"{package}.{room}"


@pytest.mark.parametrize("package", [*sorted(OURS), "benchmarks"])
def test_no_room_is_crowded(package):
    for folder in {path.parent for path in (ROOT / package).rglob("*.py")}:
        assert len([path for path in folder.glob("*.py") if path.name != "__init__.py"]) <= ROOMY, folder


def test_no_two_classes_have_one_name():
    places: dict[str, list[str]] = {}
    for package in [*sorted(OURS), "benchmarks"]:
        for path in (ROOT / package).rglob("*.py"):
            if "peers" not in path.parts:  # other projects' jobs, each on its own
                for node in parsed(path).body:
                    if isinstance(node, ast.ClassDef):
                        places.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_nothing_unpickles_or_evaluates():
    for package in OURS:
        for path in (ROOT / package).rglob("*.py"):
            assert not imports(path) & NOWHERE, path
            calls = {node.func.id for node in ast.walk(parsed(path))
                     if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
            assert not calls & {"eval", "exec"}, path
            methods = {ast.unparse(node.func) for node in ast.walk(parsed(path))
                       if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)}
            assert not methods & {"torch.load", "torch.save", "torch.jit.load"}, path
