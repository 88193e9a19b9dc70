import numpy as np
import pytest
import torch

from models.data.sequences import Sequences
from models.knowledge.sources import Moments
from models.language import generation
from models.language.generation import answer, generated
from models.language.writer import Writer
from models.systems.kar import written
from models.systems.kar.towers import Towers
from models.systems.kar.written import KnowledgeScorer, WrittenSource, item_prompts, knowledge_states, user_prompts
from tests.models import tiny


@pytest.fixture(scope="module", params=["llama", "gemma3"])
def llm(request, tmp_path_factory):
    return tiny.load(tmp_path_factory.mktemp("llm"), request.param)


def alone(llm, writer, prompt, tokens):
    """Greedy decoding without stored states."""
    ids = [llm.tokenizer.bos_token_id, *llm.tokenizer(prompt, add_special_tokens=False).input_ids]
    start, ends = len(ids), writer.ends.tolist()
    with torch.no_grad(), llm.whole():
        for step in range(tokens):
            logits = llm.causal(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
            new = ids[start:]
            seen = {tuple(new[at : at + 3]) for at in range(len(new) - 2)}
            banned = [token for token in range(len(logits)) if (*new[-2:], token) in seen]
            banned += sorted(set(range(len(logits))) - set(writer.words.tolist()))
            logits[banned + ([*ends, writer.stop] if step < generation.LEAST_TOKENS else [])] = -torch.inf
            word = int(logits.argmax())
            if word in ends or (word == writer.stop and not (new and new[-1] in writer.digits)):
                ids += [word] * (word not in ends)
                break
            ids.append(word)
    return llm.tokenizer.decode(ids[start:], skip_special_tokens=True)


def test_answers_equal_plain_greedy_decoding(llm):
    writer = Writer(llm, int8=False)
    for prompts in (["the cat", "a much longer text about a dog and a hat", "x"],
                    ["what they begin with: a", "what they begin with: bcd", "what they begin with: a2", "what"]):
        assert answer(writer, prompts, 12) == [alone(llm, writer, prompt, 12) for prompt in prompts]
    assert answer(writer, []) == []


def test_dropping_finished_rows_does_not_change_the_others(llm):
    writer = Writer(llm, int8=False)
    prompts = [f"number {at}" for at in range(8)]
    writer.ends = writer.words[:1]
    whole = answer(writer, prompts, 12)
    seventh = llm.tokenizer.convert_tokens_to_ids(whole[0].split()[6])
    for ends, stop in ((writer.words[::8], -1), (writer.words[:1], seventh)):
        writer.ends, writer.stop = ends, stop
        together = answer(writer, prompts, 12)
        assert len({len(text) for text in together}) > 1  # some ended early
        assert together == [alone(llm, writer, prompt, 12) for prompt in prompts]


def test_no_three_tokens_are_repeated():
    written = torch.tensor([[1, 2, 3, 1, 2], [5, 5, 5, 5, 5], [1, 2, 3, 4, 5]])
    row, word = generation.repeated(written)
    assert sorted(zip(row.tolist(), word.tolist(), strict=True)) == [(0, 3), (1, 5), (1, 5), (1, 5)]
    assert len(generation.repeated(written[:, :2])[0]) == 0


def test_the_common_prefix_leaves_each_row_a_token():
    assert generation.common([[1, 2, 3], [1, 2, 4, 5], [1, 2, 3, 9]]) == [1, 2]
    assert generation.common([[1, 2], [1, 2, 4]]) == [1]
    assert generation.common([[1, 2, 3]]) == [1, 2]
    assert generation.common([[7], [8]]) == []


def test_answers_are_stored_and_an_interrupted_run_continues(llm, tmp_path, monkeypatch):
    monkeypatch.setattr(generation, "BATCH", 2)
    prompts = ["one", "two", "three", "four", "one"]
    calls = []
    first = generated(llm, prompts[:2], tmp_path, tokens=6)
    file = next(tmp_path.glob("*.jsonl"))
    with file.open("ab") as out:
        out.write(b'["half a li')  # killed while writing
    again = generated(llm, prompts, tmp_path, lambda *call: calls.append(call), tokens=6)
    assert again[:2] == first
    assert again[4] == again[0]
    assert calls[-1] == (2, 2)  # only the missing ones
    monkeypatch.setattr(generation, "Writer", lambda *_: pytest.fail("asked again"))
    assert generated(llm, prompts[:2], tmp_path, tokens=6) == first


def test_texts_with_other_settings_are_stored_separately(llm, monkeypatch):
    manners = {generation.manner(llm, tokens) for tokens in (6, 7)}
    for quick in (True, False):
        monkeypatch.setattr(generation, "quick", lambda _, quick=quick: quick)
        manners.add(generation.manner(llm, 8))
    assert len(manners) == 4


def test_states_encode_answers_and_are_zero_without(llm, tmp_path):
    states = knowledge_states(llm, ["the cat", "", "a dog"], tmp_path)
    assert states.shape == (3, llm.hidden_size)
    assert (states[1] == 0).all()
    assert torch.equal(knowledge_states(llm, ["the cat", "", "a dog"], tmp_path), states)


def test_prompts_list_the_chosen_items():
    assert item_prompts(["A film", ""])[1] == ""
    assert "A film" in item_prompts(["A film", ""])[0]
    prompts = user_prompts([[0, 1], [1], [], [0] * 40], ["A film", ""])
    assert prompts[0].count("A film") == 1
    assert prompts[1:3] == ["", ""]
    assert prompts[3].count("A film") == 16


def test_a_tower_equals_the_tower_of_the_hybrid_experts():
    torch.manual_seed(0)
    towers = Towers(2, 6, 4, shared=2, specific=5).eval()
    torch.nn.init.normal_(towers.gate)
    x = torch.randn(3, 6)
    both = towers(torch.stack([x, x], 1) * (1.01 + 1e-12) ** 0.5)  # undo standardisation with variance 1
    for tower in (0, 1):
        torch.testing.assert_close(towers.tower(x, tower), both[:, tower], rtol=1e-4, atol=1e-5)


def test_a_text_is_not_used_before_the_events_it_covers():
    torch.manual_seed(0)
    states = torch.randn(4, 8)
    states[3] = 0
    source = WrittenSource(states, np.array([2, 2, 2, 2]))
    backbone = KnowledgeScorer(torch.randn(5, 8), None, 5, 8, 1, 1, 4, 0.0)
    source.attach(backbone)
    assert source.experts is backbone.experts
    vectors = source(Moments(
        np.array([0, 1, 2, 3]), torch.zeros(4, 8), np.zeros((4, 1), np.int64), np.array([1, 2, 5, 9])))
    assert vectors.shape == (4, 1, 8)
    assert (vectors[[0, 3]] == 0).all()
    assert (vectors[[1, 2]] != 0).any(-1).all()


def test_a_moment_has_the_newest_text_written_before_it():
    torch.manual_seed(0)
    source = WrittenSource(torch.randn(5, 8), np.array([4, 0, 8, 16, 4]), np.array([0, 1, 0, 0, 2]), trained=2)
    source.attach(KnowledgeScorer(torch.randn(5, source.whiten.width), None, 5, 8, 1, 1, 4, 0.0))
    user, length = np.array([0, 0, 0, 0, 0, 1, 2, 2, 3]), np.array([3, 4, 9, 15, 40, 1, 3, 4, 9])
    found = source(Moments(user, torch.zeros(9, 8), np.zeros((9, 1), np.int64), length))[:, 0]
    assert (found != 0).any(1).tolist() == [False, True, True, True, True, True, False, True, False]
    assert torch.equal(found[2], found[3])  # the text about 8 events
    assert not torch.equal(found[1], found[2])
    assert not torch.equal(found[3], found[4])
    assert written.newest_step(np.array([0, 3, 4, 7, 8, 31, 32, 100])).tolist() == [0, 0, 4, 4, 8, 16, 32, 64]


def test_texts_cover_doubling_steps_within_half_of_the_training_events():
    lengths = [0, 1, 2, 3, 4, 6, 7, 14, 15, 30, 31, 99]
    sequences = Sequences(np.zeros(sum(lengths), np.int64), np.arange(sum(lengths)), np.cumsum([0, *lengths]))
    assert written.written_about(sequences).tolist() == [0, 0, 0, 0, 0, 0, 4, 4, 8, 8, 16, 16]
