"""What can happen to a cluster, as plain data: actions, sequences of them, and the strategy that draws them.

An action is a dictionary with the name of what is done (`do`) and its choices, so that a sequence can be written to a
file and replayed. `perform` does one. Every fault is injected under load: events are sent before it and while it lasts.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from typing import Any

from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient
from hypothesis import strategies as st

from schemas.artifacts import Registry
from tests.faults.cluster import PARTITIONS, ROLES, Cluster, Instance
from tests.faults.oracle import EVENTS, LETTERS, unfinished
from tests.faults.proxy import until
from workers.kafka.topics import create_topics

Action = dict[str, Any]
STORE_MODES = ("away", "slow", "busy", "half")
# What `perform` counts as having happened; a suite that plans one of these and never sees it fails.
KINDS = ("produce", "duplicate", "disorder", "stray", "bad", "kill streams", "kill knowledge", "kill ranking",
         "pause streams", "pause knowledge", "pause ranking", "leave", "join", "broker clean", "broker killed", "cut",
         "store away", "store slow", "store busy", "store half", "letters away", "retention", "sparse", "new model",
         "rollback")

_instances = st.integers(0, 1)
_loads = st.fixed_dictionaries({
    "do": st.just("produce"), "users": st.integers(1, 30), "each": st.integers(1, 60), "disorder": st.booleans(),
    "twice": st.booleans(), "keyed": st.booleans(), "bad": st.integers(0, 5)})
_faults = st.one_of(
    st.fixed_dictionaries({"do": st.sampled_from(["kill", "pause"]), "instance": _instances,
                           "role": st.sampled_from(ROLES)}),
    st.fixed_dictionaries({"do": st.sampled_from(["leave", "join"]), "instance": _instances}),
    st.fixed_dictionaries({"do": st.just("broker"), "clean": st.booleans()}),
    st.fixed_dictionaries({"do": st.just("store"), "mode": st.sampled_from(STORE_MODES)}),
    st.sampled_from([{"do": name} for name in ("cut", "letters", "retention", "sparse", "new_model", "rollback")]))
SEQUENCES = st.lists(st.one_of(_loads, _faults), min_size=2, max_size=6)

ALL_AT_ONCE: Action = {"do": "produce", "users": 12, "each": 30, "disorder": True, "twice": True, "keyed": False,
                       "bad": 4}
# Together they inject every kind of fault at least once.
FIXED: list[list[Action]] = [
    [ALL_AT_ONCE, {"do": "kill", "instance": 0, "role": "streams"}, {"do": "kill", "instance": 1, "role": "knowledge"},
     {"do": "store", "mode": "half"}, {"do": "kill", "instance": 0, "role": "ranking"}],
    [{"do": "pause", "instance": 0, "role": "streams"}, {"do": "store", "mode": "busy"}, {"do": "new_model"},
     {"do": "pause", "instance": 1, "role": "ranking"}],
    [{"do": "broker", "clean": False}, {"do": "store", "mode": "away"}, {"do": "rollback"}, {"do": "cut"}],
    [{"do": "pause", "instance": 1, "role": "knowledge"}, {"do": "leave", "instance": 1},
     {"do": "broker", "clean": True}, {"do": "join", "instance": 1}, {"do": "store", "mode": "slow"}],
    [{"do": "letters"}, {"do": "retention"}, {"do": "sparse"}],
]


def kind(action: Action) -> list[str]:
    """Return which of `KINDS` an action plans."""
    match action["do"]:
        case "produce":
            there = {"duplicate": action["twice"], "disorder": action["disorder"], "stray": not action["keyed"],
                     "bad": action["bad"]}
            return ["produce", *(name for name, planned in there.items() if planned)]
        case "kill" | "pause":
            return [f"{action['do']} {action['role']}"]
        case "broker":
            return ["broker clean" if action["clean"] else "broker killed"]
        case "store":
            return [f"store {action['mode']}"]
        case name:
            return [{"new_model": "new model", "letters": "letters away"}.get(name, name)]


def perform(action: Action, cluster: Cluster, fired: Counter[str]) -> None:
    """Do one action; count in `fired` what verifiably happened.

    Raises:
        AssertionError: the cluster did not react as it must.
    """
    actor = Actor(cluster)
    done = getattr(actor, action["do"])(**{name: value for name, value in action.items() if name != "do"})
    fired.update(kind(action) if done else [])


class Actor:
    """The actions. Each returns whether it happened: joining twice, for one, does nothing."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.work = cluster.workload

    def produce(self, users: int, each: int, disorder: bool = False, twice: bool = False, keyed: bool = True,
                bad: int = 0) -> bool:
        """Send events of new and of known users."""
        names = self._names(users)
        self.work.send(self.work.events(names, each, disorder=disorder), keyed=keyed, twice=twice)
        self.work.send_bad(bad)
        self.work.flush()
        return not twice or users * each >= 3

    def kill(self, instance: int, role: str) -> bool:
        """SIGKILL a role while it works; its supervisor starts it again."""
        target = self.cluster.instances[instance]
        if not self._up(target) or role not in target.roles:
            return False
        self._load(20, 40)
        pid = target.pid(role)
        self.cluster.signal_kill(pid)
        self._load(20, 20)

        def restarted() -> bool:
            target.tend()
            running = target.running
            return running is not None and running.pids.get(role, pid) != pid

        until(restarted, 60, self.cluster.logs)
        return True

    def pause(self, instance: int, role: str) -> bool:
        """SIGSTOP a role under load until the group has removed it and others did its work, then let it go on."""
        target = self.cluster.instances[instance]
        if not self._up(target) or not self._others(target):
            return False
        before = self.cluster.members(role)
        self._load(30, 100)
        pid = self.cluster.pause(target, role)
        self._load(30, 50)
        until(lambda: self.cluster.members(role) < before, 60, self.cluster.logs)
        self._progress(5)
        self.cluster.resume()
        self.cluster.observe()
        return pid > 0

    def leave(self, instance: int) -> bool:
        """Stop an instance in order, under load."""
        target = self.cluster.instances[instance]
        if not self._up(target) or not self._others(target):
            return False
        self._load(20, 40)
        target.stop()
        self._load(20, 20)
        return True

    def join(self, instance: int) -> bool:
        """Start an instance that had left (or leave and join again), under load."""
        target = self.cluster.instances[instance]
        if target.wanted and not self.leave(instance):
            return False
        self._load(20, 20)
        target.start()
        self._load(20, 20)
        self.cluster.until_ready()
        until(lambda: self.cluster.members("streams") == self._wanted(), 60, self.cluster.logs)
        return True

    def broker(self, clean: bool) -> bool:
        """Restart the broker in the middle of a load."""
        node = self.cluster.node
        self._load(20, 40)
        node.stop(clean=clean)
        events = self.work.events(self._names(10), 20)
        self.work.send(events)  # waits in the client until the broker is back
        time.sleep(1.0)
        node.start()
        self.work.flush()
        return True

    def cut(self) -> bool:
        """Cut the network between the broker and the second instance until the group has removed it; then heal it."""
        if not self._up(self.cluster.instances[1]) or not self._others(self.cluster.instances[1]):
            return False
        before, held = self.cluster.members("streams"), self.cluster.network.held
        self._load(30, 100)
        self.cluster.network.cut()
        self._load(30, 50)
        until(lambda: self.cluster.members("streams") < before, 60, self.cluster.logs)
        self._progress(5)
        self.cluster.network.heal()
        return self.cluster.network.held > held

    def store(self, mode: str) -> bool:
        """Let the store fail in one way until it was met, and a little longer; new users need knowledge meanwhile."""
        front = self.cluster.front
        before = front.counts[mode]
        front.mode = mode  # type: ignore[assignment]

        def met() -> bool:
            if front.counts[mode] <= before:
                self._load(5, 5)
            return front.counts[mode] > before

        self._load(30, 10)
        until(met, 60, self.cluster.logs)
        time.sleep(1.0)
        front.mode = "ok"
        return True

    def letters(self, seconds: float = 4.0) -> bool:
        """Take the topic of dead letters away: partitions with a bad record must wait, and nothing be dropped."""
        self.settle()  # letters written so far are read before they are deleted
        cluster = self.cluster
        known = set(cluster.book.bad)
        admin = AdminClient({"bootstrap.servers": cluster.node.settings.bootstrap, "log_level": 0})
        cluster.tap.forget(LETTERS)
        admin.delete_topics([LETTERS], operation_timeout=20)[LETTERS].result()
        until(lambda: LETTERS not in admin.list_topics(timeout=10).topics, 30, "dead-letters is still there")
        self.work.send_bad(3)
        self._load(20, 10)
        bad = cluster.book.bad - known
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            cluster.observe()
            done = cluster.committed_events()
            passed = [place for place in bad if done.get(place[1], 0) > place[2]]
            assert not passed, f"committed {done} past bad records without a letter: {passed}"
            time.sleep(0.5)
        create_topics(cluster.node.settings)
        cluster.tap.again(LETTERS)
        return bool(bad)

    def sparse(self, idle_s: float = 4.0, times: int = 3, within_s: float = 10.0) -> bool:
        """Single events after silence: each is answered at once, not with the next one."""
        self.settle()
        cluster = self.cluster
        for n in range(times):
            time.sleep(idle_s)
            user = self._names(2)[n % 2]
            self.work.send(self.work.events([user], 1))
            self.work.flush()

            def answered() -> bool:
                cluster.observe()
                return not unfinished(cluster.book, cluster.ledger)

            until(answered, within_s, lambda user=user: f"no recommendation for {user}'s event\n{cluster.logs()}")
        return True

    def retention(self) -> bool:
        """Delete events that nobody has read yet, as retention does: all instances were away for too long."""
        self.settle()
        cluster = self.cluster
        up = [instance for instance in cluster.instances if instance.wanted]
        for instance in up:
            instance.stop()
        cluster.observe()
        names = self._names(10)
        gap = self.work.events(names, 10)
        self.work.send(gap)
        self.work.flush()
        admin = AdminClient({"bootstrap.servers": cluster.node.settings.bootstrap, "log_level": 0})
        parts = [TopicPartition(EVENTS, number, -1) for number in range(PARTITIONS)]  # -1: up to the end
        deleted = {part.partition: result.result().low_watermark
                   for part, result in admin.delete_records(parts, request_timeout=30).items()}
        for user, seq, _ in gap:
            cluster.book.deleted[user].add(seq)
        for number, low in deleted.items():
            cluster.tap.skip(EVENTS, number, low)
        self.work.send(self.work.events(names, 10))
        self.work.flush()
        for instance in up:
            instance.start()
        cluster.until_ready()
        return True

    def new_model(self) -> bool:
        """Put the next fitted version into use, under load."""
        versions = Registry(self.cluster.folder / "a").versions()
        at = versions.index(Registry(self.cluster.folder / "a").current())
        fresh = next((v for v in versions[at + 1:] if v not in self.cluster.used), None)
        if fresh is None:
            return False
        self._load(20, 10)
        return self._switch("models", "--select", fresh)

    def rollback(self) -> bool:
        """Go back to what was in use before; if that is the first version, a new model comes first."""
        if Registry(self.cluster.folder / "a").current() == self.cluster.first_model and not self.new_model():
            return False
        self._load(20, 10)
        return self._switch("models", "rollback")

    def settle(self, seconds: float = 180) -> float:
        """Heal everything and wait until nothing is left to do; return the seconds that took.

        Raises:
            AssertionError: something never comes; it says what.
        """
        cluster = self.cluster
        self.work.flush()
        assert not self.work.refused, f"the broker refused events: {self.work.refused[:3]}"
        started = time.monotonic()
        cluster.heal()
        cluster.until_ready()
        left: list[str] = []

        def done() -> bool:
            for instance in cluster.instances:
                instance.tend()
            cluster.observe()
            left[:] = unfinished(cluster.book, cluster.ledger)
            return not left and cluster.lag() == 0

        until(done, seconds, lambda: f"{left[:10]}, {len(left)} in all, lag {cluster.lag()}\n{cluster.logs()}")
        took = time.monotonic() - started
        cluster.look()
        return took

    # --- parts of actions

    def _names(self, users: int) -> list[str]:
        """Return users, half of them known already."""
        known = list(self.cluster.book.acked)[-3 * users:]
        old = known[::2][:users // 2]
        fresh = [f"u{len(self.cluster.book.acked) + n}" for n in range(users - len(old))]
        return old + fresh

    def _load(self, users: int, each: int) -> None:
        self.work.send(self.work.events(self._names(users), each))
        self.work.flush()

    def _progress(self, seconds: float) -> None:
        """Wait until the topics have grown by what is being done about the load, at most so long."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.cluster.observe()
            if not unfinished(self.cluster.book, self.cluster.ledger):
                return
            time.sleep(0.3)

    def _up(self, target: Instance) -> bool:
        """Return whether an instance runs; wait until it does if it should."""
        if target.wanted:
            self.cluster.until_ready()
        return target.wanted

    def _others(self, target: Instance) -> bool:
        return any(one.wanted for one in self.cluster.instances if one is not target)

    def _wanted(self) -> int:
        """Return how many instances of streams should be in the group."""
        return sum(instance.wanted and "streams" in instance.roles for instance in self.cluster.instances)

    def _switch(self, *arguments: str) -> bool:
        """Run a command that changes the model and wait until all rankers that run have it."""
        said = self.cluster.command(*arguments)
        version = re.search(r"in use: (\S+?);", said)
        assert version, said
        self.cluster.used.add(version[1])
        self.cluster.switched += 1
        self._load(10, 5)
        up = [one for one in self.cluster.instances if one.wanted and "ranking" in one.roles]

        def everywhere() -> bool:
            for instance in up:
                instance.tend()
            return all(instance.counters("ranking").get("model_version") == version[1] for instance in up)

        until(everywhere, 60, self.cluster.logs)
        return True


