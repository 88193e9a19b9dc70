import copy

import torch
from torch import nn

from models.language import adapters
from models.language.int8 import Int8Linear, base_copy
from models.language.writer import Writer, plain_words
from tests.models import tiny


def test_eight_bits_are_close_and_rows_are_independent():
    torch.manual_seed(0)
    linear = nn.Linear(64, 48)
    quick = Int8Linear(linear.weight, linear.bias)
    x = torch.randn(5, 7, 64)
    x[0, 0] *= 1000  # a large row must not affect the others
    near, exact = quick(x), linear(x)
    assert near.shape == (5, 7, 48)
    assert ((near - exact).norm(dim=-1) < 0.02 * exact.norm(dim=-1)).all()
    assert torch.equal(quick(x[2:3, 1:2]), near[2:3, 1:2])


def test_a_rounded_input_is_not_confused_with_another():
    torch.manual_seed(0)
    linear = Int8Linear(torch.randn(3, 8))
    x, y = torch.randn(2, 8), torch.randn(2, 8)
    assert torch.equal(linear(x), Int8Linear.forward(linear, x.clone()))
    assert not torch.equal(linear(x), linear(y))


def test_a_copy_shares_weights_without_adapters_and_keeps_the_original(tmp_path):
    llm = tiny.load(tmp_path, "gemma3")
    before = copy.deepcopy(llm.decoder.state_dict())
    adapters.create(llm.decoder, "a", 2)
    for weight in adapters.trainable(llm.decoder, "a"):
        nn.init.normal_(weight)
    part = base_copy(llm.decoder, int8=False)
    assert {weight.data_ptr() for weight in part.parameters()} <= {w.data_ptr() for w in llm.decoder.parameters()}
    assert not adapters.names(part)
    assert adapters.names(llm.decoder) == {"a"}
    assert set(before) == set(part.state_dict())
    assert any(isinstance(module, Int8Linear) for module in base_copy(llm.decoder, int8=True).modules())
    assert llm.decoder.config._attn_implementation != Writer(llm)._decoder.config._attn_implementation


def test_states_equal_the_models_and_are_close_in_eight_bits(tmp_path):
    llm = tiny.load(tmp_path, "gemma3", depth=0.4)
    begin, rows = [1, 20, 21, 22, 23, 24], [[30, 31, 32], [40, 41, 42, 43, 44, 45, 46, 47, 48]]
    exact = []
    with torch.no_grad(), llm.whole():
        for row in rows:
            exact.append(llm.causal(input_ids=torch.tensor([begin + row]), use_cache=False, output_hidden_states=True)
                         .hidden_states[-1][0, len(begin) :])
    for int8, least in ((False, 0.999999), (True, 0.99)):
        writer = Writer(llm, int8)
        pages, hidden = writer.read(rows, begin, 2)
        more = writer.step(torch.tensor([50, 50]), torch.tensor([9, 15]), pages)
        assert more.shape == (2, llm.hidden_size)
        for at, states in enumerate(exact):
            assert torch.cosine_similarity(hidden[at, : len(states)], states, dim=-1).min() > least


def test_plain_words_are_common_ascii_pieces():
    class Pieces:
        all_special_ids = (0,)
        pieces = ("<pad>", "\u2581the", "ия", "a\nb", "\u0120of", "é", *["zz"] * 30_000, "zzz", "q", "\u2581")

        def __len__(self):
            return len(self.pieces)

        def convert_ids_to_tokens(self, ids):
            return [self.pieces[at] for at in ids]

    found = plain_words(Pieces(), 100_000)
    assert found[:3] == [1, 4, 6]
    assert found[-2:] == [30_007, 30_008]  # rare, but single characters
    assert plain_words(Pieces(), 5) == [1, 4]
