"""From four instances of streams to one and back to four, under load, with states that must first be recovered."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.faults.actions import Actor
from tests.faults.cluster import ROLES, running
from tests.faults.oracle import violations
from tests.faults.proxy import until
from tests.workers.brokers import needs_kafka

pytestmark = [needs_kafka, pytest.mark.kafka, pytest.mark.slow, pytest.mark.timeout(400)]


def test_four_to_one_to_four_with_a_join_during_recovery(tmp_path: Path) -> None:
    streams = ("streams",)
    with running(tmp_path, roles=(ROLES, streams, streams, streams)) as cluster:
        actor = Actor(cluster)
        others = cluster.instances[1:]
        users = [f"u{n}" for n in range(200)]

        def load() -> None:
            cluster.workload.send(cluster.workload.events(users, 20))

        until(lambda: cluster.members("streams") == 4, 60, cluster.logs)
        load()
        for instance in others:  # four to one, while events come
            instance.stop()
            load()
        until(lambda: cluster.members("streams") == 1, 60, cluster.logs)
        for instance in others:  # each has lost its disk, and the next one joins while it recovers
            shutil.rmtree(instance.home / "streams")
            instance.start()
            load()
        actor.settle()
        assert cluster.members("streams") == 4
        load()
        actor.settle()
        assert cluster.faults + violations(cluster.book, cluster.ledger, cluster.held) == []
        owned = [{path.name for path in (instance.home / "streams").rglob("user-state-*.db")} for instance in others]
        assert all(owned), "each of those that came back has states"
