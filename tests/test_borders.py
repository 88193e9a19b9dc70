"""The folders are the architecture: who may import what, read off the source.

Between the top-level folders `BORDERS` says what is forbidden. Between the rooms of a folder `ORDER` is the whole
order, the ground last: a room imports rooms that stand after it, and only those that its docstring names.
"""

import ast
import re
from collections.abc import Iterator
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
        "cli", "demo", "console", "console.pages", "views.reading", "views", "replay", "training", "writing",
        "operating", "measurement", "supervision", "roles.alignment", "roles.knowledge", "roles.ranking", "roles",
        "runtime", "catalogue", "store.embedded", "store.banks", "store", "data", "kafka", "home", "terminal"),
}
ROOMY = 13  # files of a room, about a dozen, its __init__ not counted
# Calls that give a server a name: what is called → the argument that holds the name, by place.
GIVES_A_NAME = {"TopicPartition": 0, "NewTopic": 0, "NewPartitions": 0, "ConfigResource": 1, "TopicCollection": 0,
                "subscribe": 0, "produce": 0, "send_batch": 1, "Changelog": 1, "StreamsApp": 0, "QdrantStore": 3,
                "QdrantItems": 3, "ServerBank": 4}
KEYS = ("group.id", "transactional.id")
# What holds a full name that was made elsewhere in the same file, or came from the server.
FULL = {
    "streams/service/changelog.py": {"self._topic", "self._id", "*tp"},  # tests/test_names.py looks at the first two
    "streams/service/seeking.py": {"tp.topic"},
    "workers/operating/letters.py": {"letter.topic"},  # a letter names its topic as the servers do
    "workers/data/produce.py": {"self._topic"},
    "workers/kafka/live.py": {"*part"},
    "workers/kafka/outbox.py": {"record.topic"},
    "workers/kafka/reader.py": {"topic", "*part"},
    "workers/kafka/topics.py": {"name"},
    "workers/runtime/loop.py": {"self._source", "early.topic()"},
}
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


def sources() -> Iterator[tuple[str, ast.Module]]:
    for package in sorted(OURS):
        for path in sorted((ROOT / package).rglob("*.py")):
            yield str(path.relative_to(ROOT)), parsed(path)


def given_names(tree: ast.Module) -> Iterator[ast.expr]:
    """The expressions by which a file gives names to servers."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in GIVES_A_NAME and node.args:
                place = GIVES_A_NAME[called]
                starred = next((n for n, one in enumerate(node.args) if isinstance(one, ast.Starred)), len(node.args))
                yield node.args[min(place, starred, len(node.args) - 1)]
        elif isinstance(node, ast.Dict):
            yield from (value for key, value in zip(node.keys, node.values, strict=True)
                        if isinstance(key, ast.Constant) and key.value in KEYS)


def is_full(name: ast.expr, known: set[str]) -> bool:
    inner = name.elts[0] if isinstance(name, ast.List) and name.elts else name
    asked = [getattr(node, "attr", getattr(node, "id", "")) for node in ast.walk(inner)]
    return bool({"full", "_full"} & set(asked)) or ast.unparse(inner) in known


def test_no_name_reaches_a_server_past_the_prefix():
    """Two Freshets on one cluster share nothing: what is called on a server begins with `kafka.prefix`."""
    found = {place: [ast.unparse(name) for name in given_names(tree)] for place, tree in sources()}
    assert sum(map(len, found.values())) > 20
    wrong = {place: bad for place, tree in sources()
             if (bad := [ast.unparse(name) for name in given_names(tree) if not is_full(name, FULL.get(place, set()))])}
    assert not wrong, "give servers `settings.kafka.full(name)` instead"


def test_the_topic_of_a_record_is_compared_by_its_plain_name():
    """A record says its topic with the prefix, the table of topics has it without."""
    wrong = {f"{place}:{node.lineno}" for place, tree in sources() for node in ast.walk(tree)
             if isinstance(node, ast.Compare)
             for side in (node.left, *node.comparators)
             if isinstance(side, ast.Call) and isinstance(side.func, ast.Attribute) and side.func.attr == "topic"}
    assert not wrong, "compare `settings.kafka.plain(record.topic())` instead"
