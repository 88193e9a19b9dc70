from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.language.attention import Blank
from models.language.encoding import PREFIX, encode_prefix
from models.language.item_cache import ItemCache
from models.language.item_memory import layout, rotate
from models.language.llm import LanguageModel
from schemas.errors import FreshetError
from tests.models import tiny

TEXTS = ["red lacquer", "a longer title of a thing", "x", "", "blue soap, bath", "the end"]


@pytest.fixture(scope="module", params=["llama", "gemma3"])
def llm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return tiny.load(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def cache(llm: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> ItemCache:
    return ItemCache.build(llm, TEXTS, tmp_path_factory.mktemp("items"), item_tokens=16)


def whole(llm: LanguageModel, texts: list[str]) -> tuple[Blank, int]:
    """The states of prefix and items encoded as one text, and the text's length."""
    ids = llm.tokenizer(PREFIX).input_ids
    for text in texts:
        ids = ids + tokens(llm, text)
    memory = Blank(llm.device, record=[])
    with torch.no_grad():
        llm.run(llm.embed(torch.tensor([ids])), torch.arange(len(ids))[None], memory)
    return memory, len(ids)


def tokens(llm: LanguageModel, text: str) -> list[int]:
    mark, end = (llm.tokenizer(char, add_special_tokens=False).input_ids for char in "-\n")
    return mark + llm.tokenize([text], 14)[0] + end


def test_one_item_equals_encoding_in_place(llm: LanguageModel, cache: ItemCache) -> None:
    memory, length = whole(llm, [TEXTS[1]])
    ours = cache.history([[1]])
    assert int(ours.next_position[0]) == length
    for index, (key, value) in enumerate(memory.record or []):
        got_key, got_value = ours.layer(index)
        torch.testing.assert_close(got_key, key, rtol=4e-3, atol=4e-3)  # float16 on the way
        torch.testing.assert_close(got_value, value, rtol=2e-3, atol=2e-3)


def test_moved_keys_equal_keys_at_the_new_position(llm: LanguageModel, cache: ItemCache) -> None:
    memory, _ = whole(llm, [TEXTS[0], TEXTS[4], TEXTS[1]])
    key, value = (memory.record or [])[0]  # in the first layer a state depends only on token and position
    got_key, got_value = cache.history([[0, 4, 1]]).layer(0)
    torch.testing.assert_close(got_key, key, rtol=2e-3, atol=4e-3)
    torch.testing.assert_close(got_value, value, rtol=2e-3, atol=2e-3)


def test_build_opens_an_existing_cache(llm: LanguageModel, cache: ItemCache, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    built = ItemCache.build(llm, TEXTS, tmp_path, lambda *at: calls.append(at), 16)
    assert calls[0] == (0, len(TEXTS))
    assert calls[-1] == (len(TEXTS), len(TEXTS))
    calls.clear()
    again = ItemCache.build(llm, TEXTS, tmp_path, lambda *at: calls.append(at), 16)
    assert calls == []
    assert len(again) == len(TEXTS)
    np.testing.assert_array_equal(again.embeddings, built.embeddings)
    np.testing.assert_array_equal(ItemCache.open(llm, TEXTS, tmp_path, 16).embeddings, built.embeddings)
    assert again.lengths.max() <= 16
    assert again.lengths.min() >= 1
    assert ItemCache.build(llm, TEXTS, tmp_path, None, 8).lengths.max() <= 8


def test_interrupted_build_continues(llm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.language.item_cache._TOKENS_PER_BATCH", 1)  # an item at a time
    monkeypatch.setattr("models.language.item_cache._SAVE_EVERY_S", 0.0)

    def stop(done: int, _: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ItemCache.build(llm, TEXTS, tmp_path / "a", stop, 16)
    with pytest.raises(FreshetError, match="freshet fit"):
        ItemCache.open(llm, TEXTS, tmp_path / "a", 16)
    seen: list[int] = []
    resumed = ItemCache.build(llm, TEXTS, tmp_path / "a", lambda done, _: seen.append(done), 16)
    assert seen[0] == 3  # the fourth was encoded but not recorded as saved
    fresh = ItemCache.build(llm, TEXTS, tmp_path / "b", None, 16)
    np.testing.assert_array_equal(resumed.embeddings, fresh.embeddings)
    torch.testing.assert_close(resumed.history([[0, 1, 2, 3]]).layer(1), fresh.history([[0, 1, 2, 3]]).layer(1))


def test_damaged_file_is_refused(llm: LanguageModel, tmp_path: Path) -> None:
    ItemCache.build(llm, TEXTS, tmp_path, None, 16)
    states = next(tmp_path.glob("*/states.f16"))
    states.write_bytes(states.read_bytes()[:-2])
    with pytest.raises(FreshetError, match="remove"):
        ItemCache.build(llm, TEXTS, tmp_path, None, 16)


def test_added_items_equal_built_ones(llm: LanguageModel, cache: ItemCache, tmp_path: Path) -> None:
    grown = ItemCache.build(llm, TEXTS[:3], tmp_path, None, 16)
    assert grown.add([]) == []
    assert grown.add([TEXTS[3]]) == [3]
    assert grown.add(TEXTS[4:]) == [4, 5]
    np.testing.assert_allclose(grown.embeddings, cache.embeddings, rtol=1e-4, atol=1e-5)
    rows = [[5, 0, 3, 4], [-1, -1, 1, 2]]
    for ours, built in zip(grown.history(rows).layer(2), cache.history(rows).layer(2), strict=True):
        torch.testing.assert_close(ours, built, rtol=2e-3, atol=2e-3)


def test_row_beyond_the_catalogue_is_an_error(cache: ItemCache) -> None:
    with pytest.raises(FreshetError, match="add its text"):
        cache.history([[len(TEXTS)]])


def test_mean_states_distinguish_items(llm: LanguageModel, cache: ItemCache) -> None:
    assert cache.embeddings.shape == (len(TEXTS), llm.hidden_size)
    assert cache.embeddings.dtype == np.float32
    assert np.linalg.norm(cache.embeddings[0] - cache.embeddings[1]) > 0.1


def test_prefix_is_shared(llm: LanguageModel, cache: ItemCache) -> None:
    torch.testing.assert_close(cache.prefix(), encode_prefix(llm))


@given(st.data())
def test_layout_equals_a_plain_loop(data: st.DataObject) -> None:
    lengths = np.array(data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=6)))
    prefix = data.draw(st.integers(0, 3))
    offsets = prefix + np.concatenate([[0], np.cumsum(lengths)[:-1]])
    row = st.lists(st.integers(-1, len(lengths) - 1), min_size=4, max_size=4)
    rows = np.array(data.draw(st.lists(row, min_size=1, max_size=4)))
    index, shift, mask = layout(rows, offsets, lengths, prefix)
    for user, items in enumerate(rows):
        at = list(range(prefix))
        moved = [0] * prefix
        for item in items[items >= 0]:
            moved += [len(at) - prefix] * lengths[item]
            at += range(offsets[item], offsets[item] + lengths[item])
        assert mask[user].sum() == len(at)
        assert mask[user, : len(at)].all()
        assert index[user][mask[user]].tolist() == at
        assert shift[user][mask[user]].tolist() == moved
        assert not index[user][~mask[user]].any()


def test_rotation_by_zero_and_of_part_of_a_key() -> None:
    key = torch.randn(2, 3, 4, 8)
    still = rotate(key, torch.ones(2, 4, 8), torch.zeros(2, 4, 8))
    torch.testing.assert_close(still, key)
    part = rotate(key, torch.zeros(2, 4, 4), torch.ones(2, 4, 4))  # a quarter turn of the first half only
    torch.testing.assert_close(part[..., 4:], key[..., 4:])
    torch.testing.assert_close(part[..., :2], -key[..., 2:4])
