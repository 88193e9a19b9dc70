import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.data.dataset import Events
from models.data.sequences import Sequences, batches, tensors, windows
from models.scorers.backbone import Backbone, pad

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    return Backbone(n_items=30, dim=16, layers=2, heads=2, max_len=8, dropout=0.5).eval()


def test_a_slot_depends_only_on_earlier_items(backbone):
    tokens = torch.randint(1, 31, (3, 8))
    hidden = backbone(tokens)
    assert hidden.shape == (3, 9, 16)
    assert backbone.scores(hidden).shape == (3, 9, 30)
    for slot in range(9):
        changed = tokens.clone()
        changed[:, slot:] = torch.randint(1, 31, (3, 8 - slot))
        torch.testing.assert_close(backbone(changed)[:, : slot + 1], hidden[:, : slot + 1])
        torch.testing.assert_close(backbone(tokens[:, :slot])[:, slot], hidden[:, slot])


def test_padding_has_no_effect(backbone):
    tokens, lengths = pad([[3, 4], [], [5, 6, 7, 8], list(range(20))], 8)
    assert lengths.tolist() == [2, 0, 4, 8]
    hidden = backbone(tokens)
    torch.testing.assert_close(hidden[0, 2], backbone(torch.tensor([[4, 5]]))[0, 2])
    torch.testing.assert_close(hidden[1, 0], backbone(torch.zeros(1, 0, dtype=torch.int64))[0, 0])
    assert tokens[3].tolist() == list(range(13, 21))


def test_selected_slots_equal_those_of_a_full_pass(backbone):
    tokens, at = torch.randint(1, 31, (4, 8)), torch.tensor([[8, 0], [3, 3], [0, 8], [7, 1]])
    torch.testing.assert_close(backbone(tokens, at=at), backbone(tokens)[torch.arange(4)[:, None], at])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 200), st.integers(2, 12), st.integers(1, 12), st.booleans())
def test_windows_predict_every_event_once_from_earlier_events(seed, n, max_len, stride, late):
    stride = min(stride, max_len)
    rng = np.random.default_rng(seed)
    events = Events(rng.integers(0, 6, n), rng.integers(0, 50, n), np.arange(n, dtype=float), np.zeros(n, np.int64))
    sequences = Sequences.of(events, 7)
    begin = sequences.offsets[:-1] + (sequences.lengths() // 2 if late else 0)
    part = windows(sequences, max_len, stride, begin)
    predicted = []
    for batch in batches(part, 40, rng):
        tokens, where, slots, rows = tensors(sequences, part[batch])
        assert tokens.shape[1] <= max_len
        for user_row, slot, row in zip(where.tolist(), slots.tolist(), rows.tolist(), strict=True):
            start = int(part.start[batch][user_row])
            low = int(sequences.offsets[np.searchsorted(sequences.offsets, row, "right") - 1])
            assert low <= start <= row
            assert min(row - low, max_len - stride + 1) <= row - start <= max_len
            assert slot == row - start
            assert (tokens[user_row, :slot].numpy() == sequences.item[start:row] + 1).all()
        predicted += rows.tolist()
    users = zip(begin, sequences.offsets[1:], strict=True)
    assert sorted(predicted) == [row for low, high in users for row in range(low, high)]
