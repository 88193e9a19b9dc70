"""Two instances of every role on Apache Kafka, with all that can be broken: processes, the broker, networks, the store.

    Kafka ──────────────── instance a          a, b: `freshet up --roles streams,knowledge,ranking`,
      └── Network (cut) ── instance b                a home each, one folder of models
    embedded store ── StoreFront (away, slow, busy, half a batch) ── both

Everything runs with a language model of a few thousand random weights.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import orjson
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from schemas.artifacts import Registry
from schemas.errors import FreshetError
from schemas.settings import KafkaSettings, QdrantSettings, RefreshSettings, Settings, to_environ
from streams.detection.drift import Detector
from streams.profile.catalogue import ItemVectors
from tests.faults.oracle import EVENTS, TOPICS, Book, Ledger, never_fell
from tests.faults.proxy import HOST, Network, StoreFront, until
from tests.faults.workload import Workload
from tests.system.stack import command
from tests.workers.brokers import CLUSTER_ID, kafka_home
from tests.workers.fitted import ITEMS, publish, settings_in
from workers.home.stack_info import Running, find
from workers.kafka.configuration import check_reachable
from workers.kafka.lag import GroupLag
from workers.store.qdrant import QdrantStore
from workers.supervision.broker import free_port
from workers.supervision.child import Child, tail

ROLES = ("streams", "knowledge", "ranking")
GROUPS = {"streams": ("freshet-streams", EVENTS), "knowledge": ("freshet-knowledge", "knowledge-requests"),
          "ranking": ("freshet-ranking", "ranking-requests")}
STORE_KEY = "the-key-of-this-cluster"
SESSION_S = 4.0
PARTITIONS = 4
MODELS = ("m1", "m2", "m3", "m4")
# Groups may have sessions shorter than Kafka's 6 s.
# A topic that was deleted must stay away until it is created with its settings.
_PROPERTIES = ("group.min.session.timeout.ms=1000", "auto.create.topics.enable=false")


class Node:
    """One Apache Kafka node. Clients may come by its own port, or by one that a `Network` listens on."""

    def __init__(self, folder: Path, *properties: str) -> None:
        home = kafka_home()
        assert home is not None, "no Apache Kafka here"
        self.port, behind, self.network_port = free_port(), free_port(), free_port()
        self.behind = behind
        listeners = [
            f"listeners=PLAINTEXT://{HOST}:{self.port},CUT://{HOST}:{behind},CONTROLLER://{HOST}:{self.port + 1}",
            f"advertised.listeners=PLAINTEXT://{HOST}:{self.port},CUT://{HOST}:{self.network_port}",
            "listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,CUT:PLAINTEXT"]
        start = [str(home / "start"), str(folder / "kafka"), str(self.port), *_PROPERTIES, *listeners, *properties]
        self.child = Child("kafka", start, folder / "kafka.log", os.environ | {"KAFKA_CLUSTER_ID": CLUSTER_ID})

    @property
    def settings(self) -> KafkaSettings:
        return KafkaSettings(bootstrap=f"{HOST}:{self.port}", session_timeout_s=SESSION_S, partitions=PARTITIONS)

    def start(self) -> None:
        self.child.start()
        self.wait()

    def wait(self) -> None:
        def answers() -> bool:
            assert self.child.exit_code() is None, self.child.tail()
            try:
                check_reachable(self.settings, 2.0)
            except FreshetError:
                return False
            return True

        until(answers, 90, self.child.tail)

    def stop(self, *, clean: bool) -> None:
        """End it, with a shutdown or with SIGKILL."""
        if clean:
            self.child.terminate()
            if self.child.wait(30):
                return
        self.child.kill()


class Instance:
    """`freshet up` on a home of its own, as a service manager would run it: started again when it ends."""

    def __init__(self, name: str, folder: Path, models: Path, environ: Mapping[str, str], roles: Sequence[str]) -> None:
        self.name = name
        self.roles = tuple(roles)
        self.home = folder / name
        self.home.mkdir(exist_ok=True)
        for shared in ("models", "cache"):
            (models / shared).mkdir(exist_ok=True)
            if self.home != models:
                (self.home / shared).symlink_to(models / shared)
        self.environ = dict(environ) | {"FRESHET_HOME": str(self.home)}
        self.log = self.home / "up.log"
        self.child = Child(f"up-{name}", command("up", "--roles", ",".join(roles)), self.log, self.environ)
        self.wanted = False
        self.ended: list[int] = []  # exit codes of supervisors that ended unasked

    def start(self) -> None:
        self.wanted = True
        self.child.start()

    def stop(self) -> None:
        """Ask it to stop, as an operator would, and wait."""
        self.wanted = False
        self.child.terminate()
        if not self.child.wait(40):
            self.child.kill()
            raise AssertionError(f"{self.name} did not stop within 40 s of SIGTERM\n{self.logs()}")

    def kill(self) -> None:
        """End the whole instance at once."""
        self.wanted = False
        self.child.kill()

    def tend(self) -> None:
        """Start it again if it has ended unasked."""
        code = self.child.exit_code()
        if self.wanted and code is not None:
            self.ended.append(code)
            self.child.kill()
            self.child.start()

    @property
    def running(self) -> Running | None:
        return find(self.home)

    def pid(self, role: str) -> int:
        """Return the process of a role."""
        running = self.running
        assert running is not None, self.logs()
        return running.pids[role]

    @property
    def ready(self) -> bool:
        running = self.running
        return running is not None and running.ready and all(
            (self.home / "run" / f"{role}.ready").exists() for role in running.roles)

    def counters(self, role: str) -> dict[str, Any]:
        """Return the role's own counters, {} before it has written any."""
        try:
            return orjson.loads((self.home / "run" / f"{role}.json").read_bytes())
        except (OSError, orjson.JSONDecodeError):
            return {}

    def logs(self, lines: int = 12) -> str:
        """Return the ends of its logs."""
        paths = [self.log, *sorted((self.home / "run").glob("*.log"))]
        return "\n".join(f"--- {self.name}/{path.name}\n{tail(path, lines)}" for path in paths if path.exists())


class Tap:
    """Reads all topics into a ledger, up to their ends, when told to."""

    def __init__(self, kafka: KafkaSettings, ledger: Ledger) -> None:
        self._ledger = ledger
        self._kafka = kafka
        self._consumer = self._connected()
        self._at: dict[tuple[str, int], int] = {}

    def _connected(self) -> Consumer:
        return Consumer({
            "bootstrap.servers": self._kafka.bootstrap, "group.id": "oracle", "enable.auto.commit": False,
            "log_level": 0, "enable.partition.eof": True, "auto.offset.reset": "error",
            "isolation.level": "read_committed", "fetch.wait.max.ms": 20, "reconnect.backoff.max.ms": 500})

    def open(self) -> None:
        """Take the topics that are there."""
        known = self._consumer.list_topics(timeout=10).topics
        for topic in TOPICS:
            assert topic in known, f"no topic {topic}"
            for number in known[topic].partitions:
                self._at[topic, number] = 0
        self._assign()

    def catch_up(self, seconds: float = 300) -> None:
        """Read up to the ends that the topics have now."""
        ends = {part: self._consumer.get_watermark_offsets(TopicPartition(*part), timeout=10)[1] for part in self._at}
        deadline = time.monotonic() + seconds
        while any(self._at[part] < end for part, end in ends.items()):
            assert time.monotonic() < deadline, f"topics cannot be read to their ends {ends}, only {self._at}"
            for message in self._consumer.consume(5000, 0.2):
                part = message.topic(), message.partition()
                error = message.error()
                if error is None:
                    self._ledger.note(*part, message.offset(), message.key(), message.value(),
                                      message.timestamp()[1] / 1000)
                    self._at[part] = message.offset() + 1
                elif error.code() == KafkaError._PARTITION_EOF:
                    self._at[part] = max(self._at[part], message.offset())

    def skip(self, topic: str, partition: int, upto: int) -> None:
        """Go on at `upto`: what was before was deleted."""
        self._at[topic, partition] = max(upto, self._at[topic, partition])
        self._assign()

    def forget(self, topic: str) -> None:
        """Stop reading a topic: it is about to be deleted."""
        self._at = {part: offset for part, offset in self._at.items() if part[0] != topic}
        self._assign()

    def again(self, topic: str) -> None:
        """Read a topic that was created again, from its start."""
        self._consumer.close()  # it would ask for the topic that is gone, by its id
        self._consumer = self._connected()
        for number in self._consumer.list_topics(topic, timeout=10).topics[topic].partitions:
            self._at[topic, number] = 0
        self._assign()

    def _assign(self) -> None:
        self._consumer.assign([TopicPartition(*part, offset) for part, offset in self._at.items()])

    def close(self) -> None:
        self._consumer.close()


class Cluster:
    """All of it; a context manager that leaves no process behind.

    Args:
        folder: empty, for homes, the broker's data and logs.
        roles: of each instance. The first comes to the broker directly, all others over the network that can be cut.
        environ: settings beside those of the cluster.
    """

    def __init__(self, folder: Path, seed: int = 0, roles: Sequence[Sequence[str]] = (ROLES, ROLES),
                 **environ: str) -> None:
        self.folder = folder
        self.node = Node(folder)
        self.network = Network(self.node.network_port, self.node.behind)
        self.settings = self._fitted(folder / "a")
        store_port = free_port()
        self._store_url = f"http://{HOST}:{store_port}"
        self.front = StoreFront(store_port)
        base = {key: value for key, value in os.environ.items() if not key.startswith("FRESHET_")}
        base |= to_environ(self.settings) | {"OMP_NUM_THREADS": "1", "FRESHET_QDRANT_API_KEY": STORE_KEY} | environ
        store_home = folder / "store"
        self.store = Child("store", command("role", "store"), folder / "store.log", base | {
            "FRESHET_HOME": str(store_home), "FRESHET_QDRANT_URL": self._store_url})
        bootstraps = (f"{HOST}:{self.node.port}", f"{HOST}:{self.node.network_port}")
        self.instances = [
            Instance(name, folder, folder / "a", base | {
                "FRESHET_KAFKA_BOOTSTRAP": bootstraps[min(n, 1)],
                "FRESHET_QDRANT_URL": f"http://{HOST}:{self.front.port}"}, some)
            for n, (name, some) in enumerate(zip("abcdefgh", roles, strict=False))]
        self.book = Book()
        registry = Registry(folder / "a")
        artifacts = {version: registry.open(version) for version in MODELS}
        self.ledger = Ledger(
            PARTITIONS, {version: ItemVectors.load(artifact) for version, artifact in artifacts.items()},
            Detector.of(artifacts["m1"].calibration(), self.settings.refresh), self.settings.state)
        self.tap = Tap(self.node.settings, self.ledger)
        self.workload = Workload(f"{HOST}:{self.node.port}", ITEMS, self.book, seed)
        self.held: dict[str, int] = {}  # knowledge versions in the store, when it was last looked at
        self.faults: list[str] = []
        self._looked = 0.0
        self.paused: dict[int, str] = {}
        self.switched = 0
        self.first_model = MODELS[0]
        self.used = {self.first_model}
        self._reader: QdrantStore | None = None
        self._groups: dict[str, GroupLag] = {}
        self._open = contextlib.ExitStack()

    def _fitted(self, home: Path) -> Settings:
        """Fit tiny models, the first one in use."""
        home.mkdir(parents=True)
        settings = settings_in(home)
        refresh = RefreshSettings(drift_threshold=1.5, alpha=0.6, cooldown=3)  # every reason comes up
        settings = replace(settings, refresh=refresh, kafka=self.node.settings)
        for number, version in enumerate(MODELS):
            publish(settings, version, seed=number, created_at=1000.0 + number)
        Registry(home).select(MODELS[0])
        return settings

    def __enter__(self) -> Cluster:
        try:
            self._open.callback(self._end)
            self.node.start()
            self._open.enter_context(self.network)
            self._open.enter_context(self.front)
            self.store.start()
            for instance in self.instances:
                instance.start()
            self.until_ready()
            self.tap.open()
        except BaseException:
            self._open.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._open.close()

    def _end(self) -> None:
        self.resume()
        for instance in self.instances:
            instance.kill()
        self.store.kill()
        self.tap.close()
        for group in self._groups.values():
            group.close()
        self.node.child.kill()

    # --- looking

    def until_ready(self, seconds: float = 300) -> float:
        """Wait until everything that should run is ready; return the seconds it took."""
        def ready() -> bool:
            for instance in self.instances:
                instance.tend()
            return all(instance.ready for instance in self.instances if instance.wanted)

        return until(ready, seconds, self.logs)

    def observe(self) -> None:
        """Read all topics and, once a second, the store; note what must not have happened."""
        committed = {} if self.node.child.exit_code() is not None else self._committed()
        self.tap.catch_up()
        self.faults += self.ledger.ahead(committed)
        if time.monotonic() - self._looked >= 1.0:
            self.look()

    def look(self) -> None:
        """Read the versions in the store; note those that fell."""
        self._looked = time.monotonic()
        held = self.store_versions()
        if held is not None:
            self.faults += never_fell(self.held, held)
            self.held = held

    def _committed(self) -> dict[tuple[str, int], int]:
        out = {}
        for group, topic in GROUPS.values():
            reader = self._groups.setdefault(group, GroupLag(self.node.settings, group))
            with contextlib.suppress(KafkaException):
                offsets = reader.offsets([(topic, number) for number in range(PARTITIONS)])
                out.update({part: done for part, (done, _) in offsets.items()})
        return out

    def committed_events(self) -> dict[int, int]:
        """Return the committed offset of each partition of the events."""
        return {number: done for (topic, number), done in self._committed().items() if topic == EVENTS}

    def lag(self) -> int:
        """Return how many records the groups have not committed yet; a broker that does not answer adds one."""
        total = 0
        for group, topic in GROUPS.values():
            reader = self._groups.setdefault(group, GroupLag(self.node.settings, group))
            try:
                offsets = reader.offsets([(topic, number) for number in range(PARTITIONS)])
            except KafkaException:
                total += 1
            else:
                total += sum(max(0, end - done) for done, end in offsets.values())
        return total

    def members(self, role: str) -> int:
        """Return how many members the role's group has by the broker's account.

        A broker that has just started loads its groups first, and is asked again for half a minute.
        """
        admin = AdminClient({"bootstrap.servers": f"{HOST}:{self.node.port}", "log_level": 0})
        give_up = time.monotonic() + 30
        while True:
            described = admin.describe_consumer_groups([GROUPS[role][0]], request_timeout=10)
            try:
                return len(next(iter(described.values())).result().members)
            except KafkaException:
                if time.monotonic() > give_up:
                    raise
            time.sleep(0.2)

    def store_versions(self) -> dict[str, int] | None:
        """Return the version of each known user in the store; None if it does not answer."""
        if self._reader is None:
            settings = QdrantSettings(url=self._store_url, api_key=STORE_KEY, timeout_s=10)
            self._reader = QdrantStore(self._store_url, self.settings.fit.dim, settings)
        try:
            points = self._reader.read(sorted(self.ledger.replayed))
        except FreshetError:
            return None
        return {user: point.version for user, point in points.items()}

    def logs(self) -> str:
        """Return the ends of all logs."""
        return "\n".join([f"--- kafka\n{self.node.child.tail(5)}", f"--- store\n{self.store.tail(5)}",
                          *(instance.logs() for instance in self.instances)])

    def keep_logs(self, target: Path) -> None:
        """Copy all logs to `target`."""
        for path in [*self.folder.glob("*.log"), *self.folder.glob("*/up.log"), *self.folder.glob("*/run/*.log")]:
            to = target / path.relative_to(self.folder)
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, to)

    # --- breaking processes

    def pause(self, instance: Instance, role: str) -> int:
        """Stop a role's process with SIGSTOP; return its id."""
        pid = instance.pid(role)
        os.kill(pid, signal.SIGSTOP)
        self.paused[pid] = role
        return pid

    def signal_kill(self, pid: int) -> None:
        """End a process with SIGKILL."""
        os.kill(pid, signal.SIGKILL)

    def command(self, *arguments: str) -> str:
        """Run a `freshet` command on the first instance's home; return what it printed."""
        done = subprocess.run(command(*arguments), env=self.instances[0].environ, capture_output=True, text=True,
                              timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def resume(self) -> None:
        """Let all paused processes go on."""
        for pid in list(self.paused):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
            del self.paused[pid]

    def heal(self) -> None:
        """Undo every fault: nothing is paused, cut or away, and both instances run."""
        self.resume()
        self.network.heal()
        self.front.mode = "ok"
        if self.node.child.exit_code() is not None:
            self.node.start()
        if self.store.exit_code() is not None:
            self.store.start()
        for instance in self.instances:
            if not instance.wanted:
                instance.start()


@contextlib.contextmanager
def running(folder: Path, **options: Any) -> Iterator[Cluster]:
    """Yield a running cluster."""
    with Cluster(folder, **options) as cluster:
        yield cluster
