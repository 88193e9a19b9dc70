import asyncio
import gc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models.compute.neighbours import Bank, ExactBank
from models.data.sequences import Sequences
from models.knowledge.sources import moments_at
from models.language.item_cache import ItemCache
from models.systems.grasp.descriptions import Descriptions
from models.systems.grasp.holistic import HolisticSource
from schemas.errors import FreshetError, StoreUnavailableError
from schemas.settings import QdrantSettings, Settings
from tests.models import tiny
from tests.workers.store.test_store import DIM, Server, point
from workers.store import QdrantStore
from workers.store.banks.bank import EdgeBank, ServerBank, banks
from workers.store.banks.shard import BankShards

KINDS: dict[str, Callable[[str, torch.Tensor], Bank]] = {
    "engine": EdgeBank, "client": lambda name, vectors: ServerBank(":memory:", name, vectors)}


def vectors(n: int = 2000, width: int = 32) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).normal(size=(n, width)).astype(np.float32))


@pytest.mark.parametrize("kind", KINDS)
def test_qdrants_neighbours_are_exact(kind: str) -> None:
    bank = vectors()
    own = torch.arange(300)
    own[::3] = -1  # these queries have no own row to exclude
    found = KINDS[kind]("users", bank).nearest(bank[:300], 10, own)
    assert torch.equal(found, ExactBank(bank).nearest(bank[:300], 10, own))
    assert not (found == own[:, None]).any()
    assert (found[::3, 0] == torch.arange(0, 300, 3)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_banks_with_too_few_vectors_and_without_queries(kind: str) -> None:
    bank = KINDS[kind]("users", torch.eye(3))
    assert bank.nearest(torch.eye(3)[:1], 4, torch.tensor([0]))[0, 2:].tolist() == [-1, -1]
    assert set(bank.nearest(torch.eye(3)[:1], 4, torch.tensor([0]))[0, :2].tolist()) == {1, 2}
    assert bank.nearest(torch.zeros(0, 3), 4, torch.zeros(0, dtype=torch.int64)).shape == (0, 4)
    assert bank.nearest(torch.zeros(1, 3), 2, torch.tensor([1])).shape == (1, 2)
    empty = KINDS[kind]("users", torch.zeros(0, 3))
    assert empty.nearest(torch.eye(3), 2, torch.full((3,), -1)).tolist() == [[-1, -1]] * 3


def test_a_user_without_events_is_never_a_neighbour(tmp_path: Path) -> None:
    llm = tiny.load(tmp_path / "llm")
    cache = ItemCache.build(llm, [f"{letter} thing" for letter in "abcdefgh"], tmp_path / "items", None, 8)
    lengths = [3, 0, 2, 4, 0, 1]
    events = np.random.default_rng(0).integers(0, 8, sum(lengths))
    sequences = Sequences(events, np.arange(len(events)), np.concatenate([[0], np.cumsum(lengths)]))
    made: dict[str, int] = {}

    def counted(name: str, bank: torch.Tensor) -> Bank:
        made[name] = len(bank)
        return EdgeBank(name, bank)

    described = Descriptions(llm, cache)
    source = HolisticSource(sequences, described, 3, 16, banks=counted)
    assert made == {"items": 8, "users": 4}
    torch.manual_seed(0)
    exact = HolisticSource(sequences, described, 3, 16)
    exact.load_state_dict(source.state_dict())
    moments = moments_at(sequences, np.array([2, 4, 7]), torch.zeros(3, 16), 3)
    torch.testing.assert_close(source(moments), exact(moments))


def test_a_servers_collection_is_named_by_its_vectors() -> None:
    one, other = (ServerBank(":memory:", "items", vectors(n)) for n in (5, 6))
    assert one.collection.startswith("freshet_items_")
    assert one.collection != other.collection
    assert one.collection == ServerBank(":memory:", "items", vectors(5)).collection


def test_the_engines_files_are_deleted_with_the_bank() -> None:
    bank = EdgeBank("users", torch.eye(3))
    folder = Path(bank._shard.folder.name)
    assert folder.is_dir()
    del bank
    gc.collect()
    assert not folder.exists()


def test_the_settings_choose_the_engine_or_a_server() -> None:
    assert isinstance(banks(Settings())("users", torch.eye(3)), EdgeBank)
    away = replace(Settings(), qdrant=QdrantSettings(url="http://127.0.0.1:9", timeout_s=1.0))
    bank = banks(away)("users", torch.eye(3))  # a worker can start while its store is unavailable
    with pytest.raises(StoreUnavailableError, match="does not answer"):
        bank.nearest(torch.eye(3), 1, torch.arange(3))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("store"))
    yield running
    running.process.terminate()
    running.process.wait(10)


def test_the_stores_process_serves_banks(server: Server) -> None:
    bank = vectors()
    own = torch.arange(300)
    own[::3] = -1
    kept = ServerBank(server.url, "users", bank, server.settings)
    assert torch.equal(kept.nearest(bank[:300], 10, own), ExactBank(bank).nearest(bank[:300], 10, own))
    again = ServerBank(server.url, "users", bank, server.settings)
    assert again.collection == kept.collection
    assert torch.equal(again.nearest(bank[:9], 3, own[:9]), kept.nearest(bank[:9], 3, own[:9]))


def test_an_evicted_bank_is_written_again(server: Server) -> None:
    first = ServerBank(server.url, "items", vectors(7), server.settings)
    first.nearest(vectors(1), 1, torch.tensor([-1]))
    for n in range(8, 13):
        ServerBank(server.url, "items", vectors(n), server.settings).nearest(vectors(1), 1, torch.tensor([-1]))
    assert not first._client.collection_exists(first.collection)
    assert first.nearest(vectors(7)[:2], 1, torch.tensor([-1, -1])).tolist() == [[0], [1]]


def test_knowledge_and_banks_share_a_server(server: Server) -> None:
    store = QdrantStore(server.url, DIM, server.settings)
    store.ensure()
    ServerBank(server.url, "users", torch.eye(3), server.settings).nearest(torch.eye(3), 1, torch.arange(3))
    assert store.upsert([point("ann")]) == [True]
    assert store.count() == 1


def test_the_error_for_a_refused_bank_says_what_to_do(server: Server) -> None:
    bank = ServerBank(server.url, "users", torch.zeros(1, 0), server.settings)
    with pytest.raises(FreshetError, match="leave FRESHET_QDRANT_URL empty"):
        bank.nearest(torch.zeros(1, 0), 1, torch.tensor([-1]))


@pytest.mark.parametrize("vector", [[[]], [None], ["a"], {}, [[1.0, 0.0]], [True, False]])
def test_a_vector_that_is_none_is_refused(vector: object) -> None:
    banks = BankShards()

    async def use() -> None:
        await banks.create("a", {"vectors": {"size": 2}})
        with pytest.raises(ValueError, match="list of numbers"):
            await banks.put("a", {"points": [{"id": 7, "vector": vector}]})
        await banks.put("a", {"points": [{"id": 7, "vector": [1.0, 0.0]}]})

    asyncio.run(use())


def test_the_longest_unused_bank_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.store.banks.shard._KEPT", 2)
    banks = BankShards()

    async def use() -> None:
        for name in ("a", "b"):
            await banks.create(name, {"vectors": {"size": 2}})
            await banks.put(name, {"points": [{"id": 7, "vector": [1.0, 0.0]}]})
        assert [point["id"] for point in (await banks.query("a", [([1.0, 0.0], 1, ())]))[0]["points"]] == [7]
        await banks.create("c", {"vectors": {"size": 2}})

    asyncio.run(use())
    assert [name for name in "abc" if banks.has(name)] == ["a", "c"]
