"""What the previous release stored or sent is read; what a newer one did is refused, with what to do."""

from __future__ import annotations

import base64
import shutil
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import orjson
import pytest

from models.serving.ranking_model import RankingModel
from schemas.artifacts import Registry
from schemas.codec import decode, encode
from schemas.deployments import Deployments
from schemas.errors import FreshetError, NewerFormatError, PoisonError
from schemas.messages import KnowledgeUpdate, Message
from schemas.settings import Settings, load
from schemas.topics import TOPICS
from streams.decisions.planner import Planner
from streams.detection.pooled import MarginBatch, fold
from streams.detection.pooled import loads as load_pools
from streams.profile.state import dumps, loads
from tests.previous.write import FILES, ITEMS, point, ranking, write
from tests.streams import cases
from tests.workers import fitted
from workers.roles.guard import Guard
from workers.roles.knowledge.generator import LlmGenerator
from workers.roles.ranking.ranker import Ranker
from workers.store.point import KnowledgePoint, from_record

STATE = (FILES / "state.msgpack").read_bytes()
MESSAGES = {path.stem: path.read_bytes() for path in sorted((FILES / "messages").iterdir())}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with the previous release's models, and the language model they were fitted with."""
    shutil.copytree(FILES / "models", tmp_path / "models")
    fitted.settings_in(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_user_goes_on_from_a_stored_state() -> None:
    state = loads(STATE)
    assert (state.layout, state.items, state.count, state.duplicates, state.late) == (1, ["i5"] * 6, 60, 2, 1)
    assert (state.knowledge_version, state.model_version, state.standing, state.drifted) == (2, "m1+a", 0.5, True)
    assert state.pending is not None
    assert (state.pending.version, state.pending.reason, len(state.pending.features)) == (3, "drift", 9)
    assert state.trial is not None
    assert (state.trial.before, state.trial.events, state.interest_model) == (-1.0, 3, "m1")
    stage, states = Planner(cases.item_vectors(), cases.CALIBRATION, cases.settings(), "m1"), {"u": state}
    plan = stage.events(states, [cases.event(59), cases.event(60)], 2e9)  # one of them known
    assert (states["u"].count, states["u"].duplicates, states["u"].items[-1]) == (61, 3, "i0")
    assert plan.ranking[-1].knowledge_version == 2
    update = decode(KnowledgeUpdate, MESSAGES["knowledge-updates"]).model_copy(update={"version": 3})
    stage.updates(states, [(update, 2e9)], 2e9)
    assert (states["u"].knowledge_version, states["u"].pending) == (3, None)
    assert loads(dumps(states["u"])) == states["u"]


def test_a_record_of_the_changelog_is_a_state() -> None:
    record = orjson.loads((FILES / "changelog-record.json").read_bytes())
    assert base64.b64decode(record["key"]) == b"u"
    assert loads(base64.b64decode(record["value"])) == loads(STATE)


def test_no_topic_of_the_last_release_is_gone() -> None:
    assert MESSAGES.keys() <= TOPICS.keys()


@pytest.mark.parametrize("topic", MESSAGES)
def test_a_message_keeps_what_it_says(topic: str) -> None:
    message = decode(TOPICS[topic].model, MESSAGES[topic])
    sent, read = orjson.loads(MESSAGES[topic]), orjson.loads(encode(message))
    assert {name: read[name] for name in sent} == sent
    assert not message.model_extra, "a field was removed or renamed"


@pytest.mark.parametrize("topic", [name for name in MESSAGES if issubclass(TOPICS[name].model, Message)])
def test_a_message_of_a_newer_release_is_refused(topic: str) -> None:
    newer = orjson.loads(MESSAGES[topic]) | {"schema_version": 2}
    for fields in (newer, {"schema_version": 2, "nothing": "that is known"}):
        with pytest.raises(PoisonError, match=r"schema_version 2 is newer than this release's 1: upgrade this role"):
            decode(TOPICS[topic].model, orjson.dumps(fields))


def test_a_state_and_evidence_of_a_newer_release_are_refused_and_stay(tmp_path: Path) -> None:
    known = msgspec.msgpack.decode(STATE)
    for newer in ([2, *known[1:]], [2, "fields", {"of": "another kind"}]):
        with pytest.raises(NewerFormatError, match=r"format 2, newer than this release's 1; run the newer release"):
            loads(msgspec.msgpack.encode(newer))
    with pytest.raises(FreshetError, match="cannot be read"):
        loads(STATE[:-40])
    file = tmp_path / "evidence.msgpack"
    for newer in ([2, *msgspec.msgpack.decode((FILES / "guard-evidence.msgpack").read_bytes())[1:]], [2, "other"]):
        file.write_bytes(msgspec.msgpack.encode(newer))
        with pytest.raises(NewerFormatError):
            Guard(Deployments(tmp_path), file, 1.0, 0.01, 8)
        assert msgspec.msgpack.decode(file.read_bytes()) == newer


def test_the_guard_goes_on_with_stored_evidence() -> None:
    pools = load_pools((FILES / "guard-evidence.msgpack").read_bytes())
    assert (pools.versions["m1"].overall.n, len(pools.versions["m1"].codes), len(pools.judged)) == (100, 2, 50)
    findings = fold(pools, [MarginBatch(f"v{n}", "m1", [], [1], [-0.9]) for n in range(200)], 1.0, 0.01, 8)
    assert [finding.version for finding in findings] == ["m1"]


def test_models_rank_and_generate_as_before(home: Path) -> None:
    settings = replace(fitted.settings_in(home), home=home)
    settings = replace(settings, llm=replace(settings.llm, name="llm"))
    ranker = Ranker.load(settings)
    expected = orjson.loads((FILES / "expected.json").read_bytes())
    found = ranking(ranker)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, atol=2e-3, err_msg=name)
    assert isinstance(ranker.model, RankingModel)
    artifact = Registry(home).open("m1")
    assert artifact.calibration().drift_threshold == 7.0
    generator = LlmGenerator.load(settings, artifact)
    made = generator.generate([ITEMS])
    assert made.finite.all()
    assert made.vectors.shape == (1, 3, fitted.DIM)


def test_what_was_in_use_and_before_is_known(home: Path) -> None:
    deployments = Deployments(home)
    assert deployments.registry.versions() == ["m1", "m2"]
    in_use = deployments.in_use()
    assert (in_use.model_version, in_use.adapter) == ("m1+a", "adapters/a")
    assert [attempt.name for attempt in deployments.attempts()] == ["a"]
    assert deployments.roll_back(3e9).model_version == "m1"
    assert deployments.select("m2", 3e9).model_version == "m2"


@pytest.mark.parametrize("name", ["m1/calibration.json", "m1.drift.json"])
def test_thresholds_of_a_newer_release_are_refused(home: Path, name: str) -> None:
    artifact = Registry(home).open("m1")
    path = home / "models" / name
    path.write_text(path.read_text().replace('"schema_version":1', '"schema_version":2'))
    with pytest.raises(NewerFormatError, match="run the newer release"):
        artifact.calibration()


def test_a_point_of_the_store_is_read() -> None:
    stored = orjson.loads((FILES / "point.json").read_bytes())
    held, expected = from_record("u", stored["payload"], stored["vector"], fitted.DIM), point()
    assert isinstance(held, KnowledgePoint), held
    assert (held.user_id, held.version, held.codes, held.items, held.weights) == (
        expected.user_id, expected.version, expected.codes, expected.items, expected.weights)
    np.testing.assert_array_equal(held.vectors, expected.vectors)


def test_every_setting_of_a_file_still_exists() -> None:
    assert load({}, FILES / "freshet.toml") == Settings()


def test_the_command_writes_all_of_it_again(tmp_path: Path) -> None:
    write(tmp_path)
    names = [{path.relative_to(folder).as_posix() for path in folder.rglob("*")} for folder in (tmp_path, FILES)]
    new = {"models/m1/behaviour.safetensors", *(f"messages/{topic}.json" for topic in TOPICS.keys() - MESSAGES.keys())}
    assert names[0] - names[1] == new, "new in this release"
    assert names[1] <= names[0]
