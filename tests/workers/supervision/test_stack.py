import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from schemas.errors import FreshetError, SettingsError
from schemas.settings import load
from tests.workers.home.test_lock import holder
from workers.home.lock import lock
from workers.home.stack_info import Running, announce, connected, find, withdraw
from workers.supervision.broker import Broker, free_port
from workers.supervision.child import Child, bound, stop_all, tail
from workers.supervision.stack import DEFAULT_ROLES, ROLES, Stack, role_environ


def gone(pid: int, within_s: float = 5.0) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.02)
    return False


def test_children_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from workers.supervision.child import Child\n"
        f"child = Child('c', [sys.executable, '-c', 'import time; time.sleep(60)'], Path({str(tmp_path / 'log')!r}))\n"
        "child.start(); print(child.pid, flush=True); time.sleep(60)")
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert psutil.pid_exists(pid)
    parent.kill()
    parent.wait()
    assert gone(pid)


def test_stop_kills_what_does_not_listen_and_what_it_started(tmp_path: Path) -> None:
    deaf = ("import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
            "inner = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
            "print(inner.pid, flush=True); time.sleep(60)")
    child = Child("deaf", [sys.executable, "-c", deaf], tmp_path / "log")
    child.start()
    while not child.tail().strip():
        time.sleep(0.02)
    inner = int(child.tail().split()[-1])
    began = time.monotonic()
    stop_all([child], 0.3)
    assert time.monotonic() - began < 3
    assert child.exit_code() is not None
    assert gone(inner)


def test_exit_codes_pass_through() -> None:
    assert subprocess.run(bound([sys.executable, "-c", "raise SystemExit(7)"]), check=False).returncode == 7


def test_tail_of_a_log(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("".join(f"{number}\n" for number in range(100)))
    assert tail(tmp_path / "log", 2) == "98\n99"
    assert tail(tmp_path / "none", 2) == ""


def test_a_home_is_held_by_one(tmp_path: Path) -> None:
    with lock(tmp_path, "up"), pytest.raises(FreshetError, match=f"process {os.getpid()}"), lock(tmp_path, "up"):
        pass
    with lock(tmp_path, "up"):  # free again
        pass


def test_clients_find_the_running_stack(tmp_path: Path) -> None:
    settings = load({"FRESHET_HOME": str(tmp_path)})
    with pytest.raises(FreshetError, match="freshet up"):
        connected(settings)
    announce(tmp_path, Running(pid=os.getpid(), started_at=0, bootstrap="h:1", qdrant_url="http://h:2", roles=[],
                               command="up"))
    assert connected(settings).kafka.bootstrap == "h:1"
    assert connected(settings).qdrant.url == "http://h:2"
    elsewhere = load({"FRESHET_HOME": str(tmp_path), "FRESHET_KAFKA_BOOTSTRAP": "other:1"})
    assert connected(elsewhere) == elsewhere  # what is set wins
    withdraw(tmp_path)
    announce(tmp_path, Running(pid=2**22 + 1, started_at=0, bootstrap="", qdrant_url="", roles=[], command="up"))
    assert find(tmp_path) is None  # its process died


def test_roles_get_the_settings_of_their_parent(tmp_path: Path) -> None:
    settings = load({"FRESHET_HOME": str(tmp_path), "FRESHET_KAFKA_BOOTSTRAP": "h:1", "FRESHET_RANKING_TOP": "7"})
    environ = role_environ(settings, "streams", {"PATH": "/bin", "FRESHET_LLM_NAME": ""})
    assert environ["OMP_NUM_THREADS"] == "1"
    assert load({key: value for key, value in environ.items() if key.startswith("FRESHET_")}) == settings
    assert "OMP_NUM_THREADS" not in role_environ(settings, "fit", {})
    with pytest.raises(SettingsError):
        load(environ | {"FRESHET_NONSENSE": "1"})


def test_an_unknown_role_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FreshetError, match="nonsense"):
        Stack(load({"FRESHET_HOME": str(tmp_path)}), ["nonsense"])


REAL = {"FRESHET_KAFKA_BOOTSTRAP": "kafka:9092"}
STORE = {"FRESHET_QDRANT_URL": "http://qdrant:6333"}


def stack_in(home: Path, roles: str = "", **environ: str) -> Stack:
    return Stack(load({"FRESHET_HOME": str(home)} | environ), roles.split(",") if roles else DEFAULT_ROLES)


@pytest.mark.parametrize(("roles", "elsewhere"), [
    ("knowledge", "ranking"), ("ranking", "knowledge"), ("streams,ranking,guard", "knowledge")])
def test_a_store_of_its_own_is_refused_to_one_of_the_two_roles_that_share_it(
    tmp_path: Path, roles: str, elsewhere: str,
) -> None:
    with pytest.raises(FreshetError, match=f"{elsewhere} elsewhere.*FRESHET_QDRANT_URL"):
        stack_in(tmp_path, roles, **REAL)
    stack_in(tmp_path, roles, **REAL, **STORE)
    stack_in(tmp_path, roles)  # with the embedded broker there is no elsewhere


@pytest.mark.parametrize("roles", ["streams,guard", "alignment", "knowledge,ranking", ""])
def test_other_combinations_need_no_store_outside(tmp_path: Path, roles: str) -> None:
    stack_in(tmp_path, roles, **REAL)


def holds(first: Stack, second: Stack) -> bool:
    """Return whether the first stack keeps the second from its home."""
    first.hold()
    try:
        second.hold()
    except FreshetError:
        return True
    finally:
        first.stop()
        second.stop()
    return False


@pytest.mark.parametrize("role", ROLES)
def test_a_stack_that_starts_from_nothing_wants_the_home_to_itself(tmp_path: Path, role: str) -> None:
    def service() -> Stack:
        return stack_in(tmp_path, role, **REAL, **STORE)

    def embedded() -> Stack:
        return stack_in(tmp_path, "guard")

    demo = Stack(service().settings, fresh=True)
    for whole in (demo, embedded()):
        assert holds(service(), whole)
        assert holds(whole, service())
    assert holds(embedded(), demo)
    assert holds(service(), service())
    others = [name for name in ROLES if name != role]
    assert not holds(service(), Stack(service().settings, others))


def test_two_services_on_one_home_do_not_share_a_store_of_their_own(tmp_path: Path) -> None:
    assert holds(stack_in(tmp_path, "knowledge,ranking", **REAL), stack_in(tmp_path, "ranking,knowledge", **REAL))


def test_a_stack_that_finds_its_home_held_leaves_the_holder_to_be_found(tmp_path: Path) -> None:
    process = holder(tmp_path, "guard")
    announced = Running(pid=process.pid, started_at=0, bootstrap="h:1", qdrant_url="", roles=[], command="up")
    announce(tmp_path, announced)
    try:
        with pytest.raises(FreshetError, match="in use"), stack_in(tmp_path):
            pass
        assert find(tmp_path) == announced
    finally:
        process.kill()
        process.communicate()


def test_a_taken_port_is_an_error_that_says_so(tmp_path: Path) -> None:
    import socket

    with socket.socket() as taken:
        port = free_port()
        taken.bind(("127.0.0.1", port))
        taken.listen()
        with pytest.raises(FreshetError, match="FRESHET_KAFKA_PORT"):
            Broker(port, tmp_path / "log").start()
