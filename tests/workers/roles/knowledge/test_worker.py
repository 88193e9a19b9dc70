from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from models.knowledge.generation import Generation
from schemas.errors import FreshetError, StoreUnavailableError
from schemas.messages import ERASED, KnowledgeRequest, KnowledgeUpdate, ModelUpdate
from schemas.settings import QdrantSettings, Settings
from tests.workers.fitted import DIM, publish, settings_in
from tests.workers.store.test_store import write_raw
from workers.kafka.outbox import Output, Rejected
from workers.roles.knowledge.generator import LlmGenerator
from workers.roles.knowledge.worker import KnowledgeProcessor, history_hash
from workers.store import KnowledgePoint, QdrantStore
from workers.store.embedded.engine import EdgeStore
from workers.store.point import payload


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    settings = settings_in(tmp_path_factory.mktemp("home"))
    publish(settings, "m2", seed=1)
    publish(settings, "m1")
    return settings


@pytest.fixture
def generator(settings: Settings) -> LlmGenerator:
    from schemas.artifacts import Registry

    return LlmGenerator.load(settings, Registry(settings.home).open("m1"))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[EdgeStore]:
    store = EdgeStore(tmp_path / "store", DIM)
    store.ensure()
    yield store
    store.close()


def request(user: str, version: int = 1, history: Sequence[str] = ("i1", "i2", "i3"), **fields: object
            ) -> KnowledgeRequest:
    made = KnowledgeRequest(
        user_id=user, version=version, reason="drift", history=list(history), count=len(history) + version,
        event_id="e", event_time=100.0 + version, caused_at=50.0 + version, requested_at=60.0)
    return made.model_copy(update=fields)


def updates(parts: Sequence[Sequence[Output | Rejected]]) -> list[KnowledgeUpdate]:
    return [one.message for part in parts for one in part if isinstance(one, Output)]


def test_knowledge_is_in_the_store_before_it_is_announced(generator: LlmGenerator, store: EdgeStore) -> None:
    process = KnowledgeProcessor(generator, store, 4, clock=lambda: 7.0)
    seen = []
    for part in process([request(f"u{i}", history=[f"i{i}", "i9"]) for i in range(10)]):
        for one in part:
            update = one.message
            seen.append(update.user_id)
            point = store.read([update.user_id])[update.user_id]
            assert (point.version, point.model_version, point.reason) == (1, "m1", "drift")
            assert (update.caused_at, update.generated_at, update.written) == (51.0, 7.0, True)
            assert update.history_hash == point.history_hash
            assert point.vectors.shape == (3, DIM)
            assert len(point.codes) == 3
            assert np.linalg.norm(point.vectors.astype(float), axis=1).max() <= 1.001
    assert sorted(seen) == sorted(f"u{i}" for i in range(10))
    assert process.counters["forward_passes"] == 3  # 10 users, 4 at a time
    different = store.read(["u1", "u2"])
    assert not np.allclose(different["u1"].vectors, different["u2"].vectors)


def test_a_newer_request_in_the_batch_supersedes_the_older(generator: LlmGenerator, store: EdgeStore) -> None:
    process = KnowledgeProcessor(generator, store, 4)
    out = updates(list(process([request("a", 1), request("b", 5), request("a", 3), request("a", 2)])))
    assert sorted((u.user_id, u.version) for u in out) == [("a", 3), ("b", 5)]
    assert process.counters["generated"] == 2
    assert process.counters["superseded"] == 2


def test_requests_with_high_priority_come_first(generator: LlmGenerator, store: EdgeStore) -> None:
    process = KnowledgeProcessor(generator, store, 1)
    asked = [request("low", priority=0.1), request("high", priority=9.0), request("mid", priority=1.0)]
    assert [u.user_id for u in updates(list(process(asked)))] == ["high", "mid", "low"]


def test_a_redelivered_request_is_announced_again_but_not_generated(generator: LlmGenerator, store: EdgeStore) -> None:
    (first,) = updates(list(KnowledgeProcessor(generator, store, 4)([request("a", 2)])))
    again = KnowledgeProcessor(generator, store, 4)
    assert first.spent_s is not None
    assert first.spent_s > 0
    assert updates(list(again([request("a", 2)]))) == [first.model_copy(update={"spent_s": None, "spent_tokens": None})]
    assert again.counters["generated"] == 0


def test_a_newer_version_in_the_store_is_announced_instead(generator: LlmGenerator, store: EdgeStore) -> None:
    list(KnowledgeProcessor(generator, store, 4)([request("a", 6)]))
    (update,) = updates(list(KnowledgeProcessor(generator, store, 4)([request("a", 2)])))
    assert (update.version, update.count, update.written) == (6, 9, False)


def test_an_update_says_what_its_user_cost(generator: LlmGenerator, store: EdgeStore) -> None:
    work = KnowledgeProcessor(generator, store, 4, tokens=lambda: generator.counters()["llm_tokens"])
    before = generator.counters()["llm_tokens"]
    found = updates(list(work([request("a", 1), request("b", 1)])))
    assert len(found) == 2
    assert sum(one.spent_tokens or 0 for one in found) == generator.counters()["llm_tokens"] - before > 0
    assert sum(one.spent_s or 0 for one in found) == pytest.approx(work.counters["generate_s"])


class Broken:
    """The real generator, with one user's output made non-finite."""

    def __init__(self, real: LlmGenerator, victims: set[int]) -> None:
        self._real, self._victims = real, victims
        self.model_version, self.has_knowledge = real.model_version, real.has_knowledge

    def generate(self, histories: Sequence[Sequence[str]], users: Sequence[str] = ()) -> Generation:
        made = self._real.generate(histories, users)
        finite = np.array([row not in self._victims for row in range(len(histories))])
        return replace(made, finite=finite)


def test_non_finite_knowledge_is_rejected_and_the_old_stays(generator: LlmGenerator, store: EdgeStore) -> None:
    list(KnowledgeProcessor(generator, store, 4)([request("a", 1), request("b", 1)]))
    old = store.read(["a"])["a"]
    bad = request("a", 2, priority=1.0)
    (_, part) = list(KnowledgeProcessor(Broken(generator, {0}), store, 4)([request("b", 2), bad]))
    (rejected,) = [one for one in part if isinstance(one, Rejected)]
    assert rejected.message is bad
    assert "not finite" in rejected.reason
    assert [u.user_id for u in updates([part])] == ["b"]
    np.testing.assert_array_equal(store.read(["a"])["a"].vectors, old.vectors)


class Overtaken(EdgeStore):
    """A store into which another worker writes between generation and write."""

    def upsert(self, points: Sequence[KnowledgePoint]) -> list[bool]:
        super().upsert([replace(point, version=point.version + 5, count=99) for point in points])
        return super().upsert(points)


def test_an_overtaken_write_announces_the_newer_version(generator: LlmGenerator, tmp_path: Path) -> None:
    store = Overtaken(tmp_path / "store", DIM)
    store.ensure()
    (update,) = updates(list(KnowledgeProcessor(generator, store, 4)([request("a", 1)])))
    assert (update.version, update.count, update.written) == (6, 99, False)
    store.close()


@pytest.mark.parametrize(("version", "announced"), [(2, 4), (4, 4), (9, 9), (None, 4), ("four", 4), (2**60, 4)])
def test_a_damaged_point_is_generated_again_and_its_version_does_not_fall(
    version: object, announced: int, generator: LlmGenerator, store: EdgeStore,
) -> None:
    list(KnowledgeProcessor(generator, store, 4)([request("sound", 4)]))
    sound = store.read(["sound"])["sound"]
    write_raw(store, "hurt", payload(sound) | {"user": "hurt", "version": version, "count": None},
              {"knowledge": sound.vectors.tolist(), "pooled": sound.pooled.tolist()})
    process = KnowledgeProcessor(generator, store, 4)
    out = updates(list(process([request("hurt", 4), request("sound", 4)])))
    assert {(u.user_id, u.version, u.written) for u in out} == {("hurt", announced, True), ("sound", 4, True)}
    assert process.counters["generated"] == process.counters["damaged"] == 1
    held = store.read(["hurt", "sound"])
    assert held["hurt"].version == announced
    np.testing.assert_array_equal(held["hurt"].vectors, sound.vectors)  # the same history
    again = updates(list(KnowledgeProcessor(generator, store, 4)([request("hurt", 4)])))
    assert [(u.version, u.written) for u in again] == [(announced, announced == 4)]


def test_an_unavailable_store_raises(generator: LlmGenerator) -> None:
    store = QdrantStore("http://127.0.0.1:9", DIM, QdrantSettings(timeout_s=1))
    with pytest.raises(StoreUnavailableError):
        list(KnowledgeProcessor(generator, store, 4)([request("a")]))


def test_empty_histories_and_unknown_items_give_knowledge(generator: LlmGenerator, store: EdgeStore) -> None:
    asked = [request("unknown", history=["new-1", "new-2"]), request("none", history=[]),
             request("mixed", history=["i1", "new", "i2"]), request("plain", history=["i1", "i2"])]
    list(KnowledgeProcessor(generator, store, 4)(asked))
    held = store.read([r.user_id for r in asked])
    assert len(held) == 4
    np.testing.assert_array_equal(held["mixed"].vectors, held["plain"].vectors)
    np.testing.assert_array_equal(held["unknown"].vectors, held["none"].vectors)


def test_equal_histories_have_equal_hashes() -> None:
    assert history_hash(["a", "b"]) == history_hash(["a", "b"]) != history_hash(["ab"])


def test_another_artifact_is_loaded_and_a_missing_one_changes_nothing(generator: LlmGenerator) -> None:
    before = generator.generate([["i1", "i2"]]).vectors
    with pytest.raises(FreshetError, match="m7"):
        generator.apply(ModelUpdate(model_version="m7", published_at=1.0))
    np.testing.assert_array_equal(generator.generate([["i1", "i2"]]).vectors, before)
    generator.apply(ModelUpdate(model_version="m2", published_at=1.0))
    assert generator.model_version == "m2"
    assert not np.allclose(generator.generate([["i1", "i2"]]).vectors, before)
    generator.apply(ModelUpdate(model_version="m1", published_at=2.0))
    np.testing.assert_array_equal(generator.generate([["i1", "i2"]]).vectors, before)


@pytest.mark.parametrize("name", ["../../etc", "absent"])
def test_adapters_outside_the_folder_or_missing_are_refused(generator: LlmGenerator, name: str) -> None:
    with pytest.raises(FreshetError, match="adapter"):
        generator.apply(ModelUpdate(model_version="m1-lora", adapter=name, published_at=1.0))
    assert generator.model_version == "m1"


def test_an_adapter_changes_knowledge_and_null_brings_the_base_back(
    generator: LlmGenerator, settings: Settings,
) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    causal = AutoModelForCausalLM.from_pretrained(settings.llm.name)
    tuned = get_peft_model(causal, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    tuned.save_pretrained(settings.home / "models" / "adapters" / "a1")
    base = generator.generate([["i1", "i2"]]).vectors
    generator.apply(ModelUpdate(model_version="m1-a1", adapter="adapters/a1", published_at=1.0))
    assert generator.model_version == "m1-a1"
    assert not np.allclose(generator.generate([["i1", "i2"]]).vectors, base, atol=1e-4)
    generator.apply(ModelUpdate(model_version="m1", published_at=2.0))
    np.testing.assert_array_equal(generator.generate([["i1", "i2"]]).vectors, base)


def test_an_erased_users_knowledge_leaves_the_store_and_can_be_made_again(
    generator: LlmGenerator, store: EdgeStore,
) -> None:
    process = KnowledgeProcessor(generator, store, 4)
    list(process([request("a", 5), request("b", 5)]))
    out = process.forget(["a", "nobody"])
    assert [(one.topic.name, one.key, one.message, dict(one.headers)) for one in out] == [
        ("knowledge-updates", "a", None, {ERASED: b"1"}), ("knowledge-updates", "nobody", None, {ERASED: b"0"})]
    assert store.read(["a", "b"]).keys() == {"b"}
    assert process.counters["erased"] == 1
    (update,) = updates(list(process([request("a", 1)])))
    assert (update.version, update.written) == (1, True)
