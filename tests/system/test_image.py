"""The image without a container engine: its file tree, made by the Dockerfile's lines, and the roles in it as its user.

The code is what `pip install` makes of the files that the Dockerfile copies, and nothing beside it. The roles run as
user 10001 in an empty folder; they may write to the home and to a folder for temporary files.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from tests.workers.brokers import start_broker
from tests.workers.fitted import publish, settings_in
from workers.supervision.broker import Broker

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text()
UID = 10001
# The interpreter may lie where only root looks, such as /root/.pyenv: reading everything is allowed, writing is not.
_READ_ONLY = "-all,+dac_read_search"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.getuid() != 0 or shutil.which("setpriv") is None, reason="only root can become another user")]


def as_user(*command: str) -> list[str]:
    """`command` as the image's user, without privileges, as compose starts it."""
    return ["setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups", "--no-new-privs",
            f"--bounding-set={_READ_ONLY}", f"--inh-caps={_READ_ONLY}", f"--ambient-caps={_READ_ONLY}", *command]


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of installed packages, built from copied files alone."""
    context, site = tmp_path_factory.mktemp("context"), tmp_path_factory.mktemp("image") / "site"
    for line in DOCKERFILE.splitlines():
        if line.startswith("COPY ") and "--from" not in line:
            *sources, target = line.split()[1:]
            for source in sources:
                place = context / target
                if (ROOT / source).is_dir():
                    shutil.copytree(ROOT / source, place, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    place.mkdir(parents=True, exist_ok=True)
                    shutil.copy(ROOT / source, place)
    install = ["pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--target", str(site)]
    subprocess.run([sys.executable, "-m", *install, str(context)], check=True, env=os.environ | {"PYTHONPATH": ""})
    return site


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder that every user can reach (pytest's own are root's), with what the image and its volumes hold."""
    for parent in (tmp_path, *tmp_path.parents):
        if parent.stat().st_uid == os.getuid() and parent.is_relative_to("/tmp") and parent != Path("/tmp"):  # noqa: S108
            parent.chmod(0o755)
    (tmp_path / "bare").mkdir()
    made = re.search(rf"install -d -o {UID} -g {UID} -m 0755 ((?:\\\n|[^&\n])+)", DOCKERFILE)
    assert made is not None
    home = Path("/var/lib/freshet")
    for folder in ["/tmp", *made[1].replace("\\\n", " ").split()]:  # noqa: S108
        inside = tmp_path / ("tmp" if folder == "/tmp" else Path("home") / Path(folder).relative_to(home))  # noqa: S108
        inside.mkdir(exist_ok=True)
        os.chown(inside, UID, UID)
    return tmp_path


def files(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


@pytest.mark.timeout(300)
def test_every_role_runs_as_the_images_user_with_code_that_nobody_can_change(code: Path, place: Path) -> None:
    home = place / "home"
    settings = settings_in(home)
    publish(settings, "v1")  # root's and readable: as `fit` in another container left it
    broker = start_broker("embedded", place / "broker")
    assert isinstance(broker, Broker)
    roles = {"streams", "knowledge", "ranking", "guard", "alignment"}
    environ = {
        "PATH": os.environ["PATH"], "PYTHONPATH": str(code), "PYTHONDONTWRITEBYTECODE": "1", "HOME": str(home),
        "TMPDIR": str(place / "tmp"), "MPLCONFIGDIR": str(place / "tmp" / "matplotlib"), "OMP_NUM_THREADS": "1",
        "FRESHET_HOME": str(home), "FRESHET_KAFKA_BOOTSTRAP": broker.bootstrap,
        "FRESHET_KAFKA_SESSION_TIMEOUT_S": "3", "FRESHET_LLM_NAME": settings.llm.name, "FRESHET_LLM_DEVICE": "cpu",
        "FRESHET_LLM_DEPTH": "1.0", "FRESHET_LLM_ITEM_TOKENS": "8", "FRESHET_LLM_HISTORY": "6",
        "FRESHET_FIT_DIM": str(settings.fit.dim)}
    before = files(code)
    # As in compose, in several processes; knowledge and ranking in one, since there is no Qdrant server here.
    groups = ["knowledge,ranking", "streams,guard,alignment"]
    with ExitStack() as stack:
        stack.callback(broker.child.kill)  # type: ignore[union-attr]
        services = []
        for group in groups:
            log = stack.enter_context((place / f"{group}.log").open("wb"))
            services.append(subprocess.Popen(
                as_user(sys.executable, "-m", "workers.cli", "up", "--roles", group), cwd=place / "bare", env=environ,
                stdout=log, stderr=subprocess.STDOUT))
            stack.callback(stop, services[-1])
        deadline = time.monotonic() + 150
        while left := {role for role in roles if not (home / "run" / f"{role}.ready").exists()}:
            logs = "\n".join(path.read_text()[-3000:] for path in [*place.glob("*.log"), *(home / "run").glob("*.log")])
            assert all(service.poll() is None for service in services), logs
            assert time.monotonic() < deadline, f"not ready: {left}\n{logs}"
            time.sleep(0.3)
        for service in services:
            for process in [psutil.Process(service.pid), *psutil.Process(service.pid).children(recursive=True)]:
                assert set(process.uids()) == {UID}
                assert str(ROOT) not in process.cwd()
    assert files(code) == before
    assert files(place / "bare") == set()
    # The processes above import the same modules: of the image, not of this tree.
    script = "import workers, pathlib; path = pathlib.Path(workers.__file__); print(path.parent); path.touch()"
    refused = subprocess.run(
        as_user(sys.executable, "-c", script), cwd=place / "bare", env=environ, capture_output=True, text=True,
        check=False)
    assert refused.stdout.strip() == str(code / "workers")
    assert "PermissionError" in refused.stderr


def test_a_folder_of_state_that_is_roots_is_one_clear_line(code: Path, place: Path) -> None:
    """What an anonymous volume looked like at a place that the image lacked."""
    os.chown(place / "home" / "streams", 0, 0)
    publish(settings_in(place / "home"), "v1")
    done = subprocess.run(
        as_user(sys.executable, "-m", "workers.cli", "up", "--roles", "streams"), cwd=place / "bare",
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(code), "FRESHET_HOME": str(place / "home"),
             "FRESHET_KAFKA_BOOTSTRAP": "127.0.0.1:9"},
        capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert f"{place / 'home' / 'streams'} is not writable" in done.stderr


def stop(service: subprocess.Popen[bytes]) -> None:
    service.terminate()
    try:
        service.wait(20)
    finally:
        service.kill()
