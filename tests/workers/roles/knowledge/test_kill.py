"""kill -9 of the knowledge worker between its steps: no refresh is lost, and none is announced that is not stored."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from schemas.settings import to_environ
from schemas.topics import DEAD_LETTERS, KNOWLEDGE_REQUESTS, KNOWLEDGE_UPDATES
from tests.workers.brokers import ROOT
from tests.workers.fitted import DIM
from tests.workers.roles.knowledge.killed_worker import POINTS
from tests.workers.roles.test_roles import Stack, knowledge_request
from tests.workers.store.test_store import point, write_raw
from workers.kafka.lag import KNOWLEDGE_GROUP, lag
from workers.store.point import payload

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    stack = Stack("embedded", tmp_path_factory.mktemp("stack"))
    stack.store.ensure()
    yield stack
    stack.close()


def worker(stack: Stack, point_: str, marker: Path) -> subprocess.Popen[bytes]:
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.workers.roles.knowledge.killed_worker", point_, str(marker)], cwd=ROOT,
        env={**os.environ, **to_environ(stack.settings)})
    stack._children.append(child)
    return child


@pytest.mark.parametrize("name", POINTS)
def test_killed_between_two_steps(name: str, stack: Stack, tmp_path: Path) -> None:
    users = [f"{uuid4().hex[:8]}-{i}" for i in range(80)]  # batches of 32, 4 users per pass
    for user in users[::5]:  # in every pass
        write_raw(stack.store, user, payload(point(user)) | {"count": None},
                  {"knowledge": [[0.1] * DIM] * 3, "pooled": [0.1] * DIM})
    stack.produce(KNOWLEDGE_REQUESTS, [knowledge_request(user) for user in users])
    marker = tmp_path / "died"
    first = worker(stack, name, marker)
    assert first.wait(120) == -signal.SIGKILL
    assert marker.exists()
    again = worker(stack, name, marker)
    updates = stack.collect(KNOWLEDGE_UPDATES, lambda got: set(users) <= {u.user_id for u in got})
    ours = [u for u in updates if u.user_id in set(users)]
    assert {(u.version, u.model_version, u.written) for u in ours} == {(1, "m1", True)}
    held = stack.store.look(users)
    assert set(held.points) == set(users)
    assert not held.damaged
    assert all(held.points[u.user_id].history_hash == u.history_hash for u in ours)
    assert all(held.points[u.user_id].generated_at >= u.generated_at for u in ours)
    assert len(ours) <= len(users) + 32  # at most one batch is announced twice
    stack.wait(lambda: sum(lag(stack.settings.kafka, KNOWLEDGE_GROUP, [KNOWLEDGE_REQUESTS.name]).values()) == 0)
    again.terminate()
    assert again.wait(30) == 0
    stack.collect(DEAD_LETTERS, lambda got: not got, seconds=1)
