"""What processes load, and when they try again; `tests/workers/roles/test_roles.py` does it with running roles."""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from schemas.artifacts import Card, write_card
from schemas.deployments import Attempt, Deployments, adapter_folder
from schemas.errors import FreshetError
from schemas.messages import ModelUpdate
from schemas.settings import KafkaSettings, Settings
from workers.runtime.model_updates import LOOK_EVERY_S, PAUSE_S, Follower, ModelUpdates


class Role:
    """Loads the weights of what it is told, at times of its own."""

    def __init__(self, home: Path, loaded: str = "m1") -> None:
        self.deployments = Deployments(home)
        self.loaded = loaded
        self.tries = 0
        self.memory = True
        self.now = 100.0
        self.follower = Follower(self.deployments, "test", loaded, self.apply, clock=lambda: self.now)

    def apply(self, update: ModelUpdate) -> None:
        self.tries += 1
        if not self.memory:
            raise MemoryError
        self.deployments.registry.open(update.model_version.split("+")[0])
        if update.adapter is not None:
            adapter_folder(self.deployments.registry.folder, update.adapter)
        self.loaded = update.model_version

    def turn(self, seconds: float = LOOK_EVERY_S) -> str:
        self.now += seconds
        self.follower.follow()
        return self.loaded

    @property
    def waiting(self) -> str:
        return self.follower.counters()["model_waiting"]


def publish(deployments: Deployments, *versions: str) -> None:
    for version in versions:
        with deployments.registry.publish(version) as folder:
            (folder / "weights").write_text("w")
            write_card(folder, Card(model_version=version, created_at=100.0, data_hash="", settings={}, split_time=0,
                                    files={}))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    deployments = Deployments(tmp_path)
    publish(deployments, "m1", "m2")
    deployments.registry.select("m1")
    return tmp_path


def test_every_role_follows_what_is_in_use_without_any_message(home: Path) -> None:
    roles = [Role(home), Role(home), Role(home)]
    for version in ("m2", "m1"):
        Deployments(home).fitted(version, 300.0)  # as `freshet fit` does
        assert {role.turn() for role in roles} == {version}
    assert [role.tries for role in roles] == [2, 2, 2]
    for role in roles:
        role.turn()
    assert [role.tries for role in roles] == [2, 2, 2]


def test_what_cannot_be_loaded_for_a_passing_reason_is_loaded_later(
    home: Path, caplog: pytest.LogCaptureFixture,
) -> None:
    role = Role(home)
    role.memory = False
    Deployments(home).select("m2", 300.0)
    for _ in range(600):
        assert role.turn() == "m1"
    assert role.tries == 15  # at 1, 2, 4 ... seconds, then every minute
    assert role.waiting == "m2: MemoryError: "
    assert caplog.text.count("cannot be loaded") == 1, "said once"
    role.memory = True
    assert role.turn(PAUSE_S[1]) == "m2"
    assert role.waiting == ""


def test_a_version_that_a_shared_volume_does_not_show_yet_is_loaded_once_it_does(home: Path) -> None:
    role = Role(home)
    weights = home / "models" / "m2" / "weights"
    Deployments(home).select("m2", 300.0)
    weights.rename(home / "hidden")
    assert role.turn() == "m1"
    assert "weights is missing" in role.waiting
    assert [role.turn(), role.turn(), role.turn()] == ["m1"] * 3
    (home / "hidden").rename(weights)
    assert role.turn() == "m2", "at once, whatever the pause"


def test_a_damaged_file_is_reported_and_tried_again_when_it_changes(home: Path) -> None:
    role = Role(home)
    weights = home / "models" / "m2" / "weights"
    Deployments(home).select("m2", 300.0)
    weights.write_text("damaged")
    for _ in range(100):
        assert role.turn() == "m1"
    assert "does not match its hash" in role.waiting
    tries = role.tries
    weights.write_text("w")
    assert (role.turn(), role.tries) == ("m2", tries + 1)


def test_a_message_for_a_copied_folder_of_models_is_followed_when_the_version_arrives(home: Path) -> None:
    role = Role(home)
    role.follower.offer(ModelUpdate(model_version="m3", published_at=400.0))
    assert role.turn() == "m1"
    assert "no model version 'm3'" in role.waiting
    publish(role.deployments, "m3")
    role.follower.offer(ModelUpdate(model_version="m2", published_at=390.0))  # older, and late
    assert role.turn(PAUSE_S[1]) == "m3"
    assert Role(home).deployments.in_use().model_version == "m3", "the registry knows, and so do all roles"
    assert role.waiting == ""


def test_a_message_that_is_older_than_the_registry_changes_nothing(home: Path) -> None:
    role = Role(home)
    Deployments(home).select("m2", 300.0)
    role.follower.offer(ModelUpdate(model_version="m1", published_at=299.0))
    assert role.turn() == "m2"


def test_a_rolled_back_adapter_is_taken_off_and_what_failed_before_is_forgotten(home: Path) -> None:
    role = Role(home)
    (home / "models" / "adapters" / "a").mkdir(parents=True)
    attempt = Attempt(name="a", base="m1", created_at=300.0, published=True, reason="better")
    role.deployments.publish_adapter(attempt, 300.0)
    assert role.turn() == "m1+a"
    shutil.rmtree(home / "models" / "adapters" / "a")
    role.deployments.publish_adapter(attempt.model_copy(update={"name": "b"}), 301.0)
    assert role.turn() == "m1+a"
    assert "adapters/b" in role.waiting
    assert role.deployments.roll_back(302.0).model_version == "m1"
    assert role.turn() == "m1"
    assert role.waiting == ""


def test_a_registry_that_cannot_be_read_stops_no_role(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    role = Role(home)
    (home / "models" / "deployed.jsonl").write_text('{"schema_version": 9}\n')
    with caplog.at_level(logging.ERROR):
        assert [role.turn() for _ in range(20)] == ["m1"] * 20
    assert "run the newer release" in role.waiting
    assert caplog.text.count("cannot tell which model is in use") == 1
    (home / "models" / "deployed.jsonl").unlink()
    Deployments(home).select("m2", 300.0)
    assert role.turn() == "m2"


def test_a_process_starts_with_what_is_in_use_whatever_the_broker_has_forgotten(home: Path) -> None:
    deployments = Deployments(home)
    (home / "models" / "adapters" / "a").mkdir(parents=True)
    deployments.publish_adapter(Attempt(name="a", base="m1", created_at=1.0, published=True, reason="better"), 300.0)
    applied: list[str] = []
    nobody = replace(Settings(), home=home, kafka=KafkaSettings(bootstrap="127.0.0.1:9"))
    updates = ModelUpdates(nobody, "test", "m1", lambda update: applied.append(update.model_version))
    updates.catch_up(within_s=0.2)
    updates.close()
    assert applied == ["m1+a"]


def test_an_adapter_outside_the_registry_is_refused(tmp_path: Path) -> None:
    (tmp_path / "models" / "adapters" / "a").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    assert adapter_folder(tmp_path / "models", "adapters/a").is_dir()
    for name in ("../other", "/etc", "adapters/b"):
        with pytest.raises(FreshetError):
            adapter_folder(tmp_path / "models", name)
