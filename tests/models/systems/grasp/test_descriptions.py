import numpy as np
import pytest
import torch

from models.language.item_cache import ItemCache
from models.systems.grasp.descriptions import Descriptions, describe
from schemas.errors import FreshetError
from tests.models import tiny

TEXTS = [f"{letter} thing" for letter in "abcdefghijkl"]
HISTORIES = np.array([[-1, -1, 3], [0, 1, 2], [2, 1, 0], [-1, -1, -1], [4, 5, 6], [0, 1, 2]])


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    return tiny.load(tmp_path_factory.mktemp("llm"))


@pytest.fixture(scope="module")
def cache(llm, tmp_path_factory):
    return ItemCache.build(llm, TEXTS, tmp_path_factory.mktemp("items"), None, 8)


@pytest.fixture
def passes(monkeypatch):
    """Numbers of histories passed to the language model."""
    seen: list[int] = []

    def counted(llm, cache, histories):
        seen.append(len(histories))
        return describe(llm, cache, histories)

    monkeypatch.setattr("models.systems.grasp.descriptions.describe", counted)
    return seen


def test_descriptions_equal_the_language_model_states(llm, cache, tmp_path):
    found = Descriptions(llm, cache, tmp_path)(HISTORIES)
    expected = torch.cat([describe(llm, cache, HISTORIES[row : row + 1]) for row in range(len(HISTORIES))])
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=2e-3)
    assert torch.equal(found[1], found[5])
    assert not torch.equal(found[1], found[2])  # the order of a history matters


def test_no_history_is_described_twice(llm, cache, tmp_path, passes):
    first = Descriptions(llm, cache, tmp_path)
    before = first(HISTORIES)
    assert sum(passes) == len(HISTORIES) - 1  # two are equal
    assert torch.equal(first(HISTORIES[::-1].copy()), before.flip(0))
    again = Descriptions(llm, cache, tmp_path)
    assert torch.equal(again(np.array([[-1, 0, 1, 2], [-1, -1, -1, 3]])), before[[1, 0]])  # padding is ignored
    assert sum(passes) == len(HISTORIES) - 1
    assert again(HISTORIES[:0]).shape == (0, llm.hidden_size)


def test_without_a_folder_they_are_kept_in_memory(llm, cache, passes):
    described = Descriptions(llm, cache)
    assert torch.equal(described(HISTORIES), described(HISTORIES))
    assert sum(passes) == len(HISTORIES) - 1


def test_another_model_or_text_is_described_again(llm, cache, tmp_path, passes):
    before = Descriptions(llm, cache, tmp_path / "d")(HISTORIES[1:2])
    texts = ItemCache.build(llm, [*TEXTS[:2], "something else", *TEXTS[3:]], tmp_path, None, 8)
    changed = Descriptions(llm, texts, tmp_path / "d")(HISTORIES[1:2])
    assert not torch.equal(before, changed)
    other = tiny.load(tmp_path / "llm", "qwen3", seed=1)
    Descriptions(other, ItemCache.build(other, TEXTS, tmp_path, None, 8), tmp_path / "d")(HISTORIES[1:2])
    assert passes == [1, 1, 1]


def test_items_added_later_are_identified_by_their_text(llm, tmp_path, passes):
    cache = ItemCache.build(llm, TEXTS, tmp_path, None, 8)
    described = Descriptions(llm, cache, tmp_path / "d")
    one, other = cache.add(["late thing", "another late one"])
    found = described(np.array([[0, one], [0, other]]))
    assert not torch.equal(found[0], found[1])
    assert sum(passes) == 2


def test_a_truncated_or_damaged_record_is_recomputed(llm, cache, tmp_path, passes):
    before = Descriptions(llm, cache, tmp_path)(HISTORIES)
    (path,) = tmp_path.glob("*.f16")
    size = path.stat().st_size // 5
    whole = path.read_bytes()
    # the first record is damaged, the last one is cut in half
    path.write_bytes(whole[:40] + bytes([whole[40] ^ 1]) + whole[41 : -size // 2])
    passes.clear()
    again = Descriptions(llm, cache, tmp_path)(HISTORIES)
    torch.testing.assert_close(again, before, atol=2e-3, rtol=2e-3)
    assert sum(passes) == 2
    assert path.stat().st_size == 6 * size
    Descriptions(llm, cache, tmp_path)(HISTORIES)
    assert sum(passes) == 2


def test_an_interruption_keeps_finished_descriptions(llm, cache, tmp_path, monkeypatch, passes):
    monkeypatch.setattr("models.systems.grasp.descriptions._BATCH", 2)

    def stop(done, total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Descriptions(llm, cache, tmp_path)(HISTORIES, stop)
    passes.clear()
    Descriptions(llm, cache, tmp_path)(HISTORIES)
    assert sum(passes) == 3


def test_one_process_reads_what_another_wrote(llm, cache, tmp_path, passes):
    one, other = Descriptions(llm, cache, tmp_path), Descriptions(llm, cache, tmp_path)
    before = one(HISTORIES[:2])
    assert torch.equal(other(HISTORIES[:2]), before)
    assert sum(passes) == 2
    other(HISTORIES[2:4])
    one(HISTORIES)
    assert sum(passes) == 5
    (path,) = tmp_path.glob("*.f16")
    assert Descriptions(llm, cache, tmp_path)(HISTORIES).shape[0] == 6
    assert path.stat().st_size % 5 == 0


def test_an_unwritable_folder_is_an_error(llm, cache, tmp_path):
    described = Descriptions(llm, cache, tmp_path)
    described._kept._path.mkdir()
    with pytest.raises(FreshetError, match="FRESHET_HOME"):
        described(HISTORIES)
