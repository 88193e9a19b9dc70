"""Rows without training, on data where the answer is known: items come in pairs, a pair's second follows its first."""

from dataclasses import replace

import numpy as np
import pytest

from models.data.dataset import Dataset, Events
from models.evidence.item_knowledge import ItemKnowledge
from models.measuring.metrics import recall
from models.measuring.protocols import FRESH, leave_one_out, stream_time
from models.systems.context import Context
from models.systems.table import SYSTEMS, served_system, system_named
from models.systems.training import train
from models.systems.untrained import PARTS
from schemas.errors import FreshetError
from schemas.settings import FitSettings, Settings, StateSettings

SETTINGS = replace(Settings(), state=StateSettings(history=8), fit=FitSettings(dim=8, layers=1, epochs=1, seed=1))
PAIRS = 24
NEW = 2 * PAIRS  # an item that nobody had in the training part; it shares its word with the item 0


def language():
    raise AssertionError("a language model was opened")


@pytest.fixture(scope="module")
def data():
    """Users who take pairs (2 k, 2 k + 1), one item after the other; in the end some take 0 and then the new item."""
    rng = np.random.default_rng(0)
    rows = []
    for user in range(160):
        items = [item for pair in rng.permutation(np.arange(1, PAIRS))[:4] for item in (2 * pair, 2 * pair + 1)]
        rows += [(10 * place + rng.random(), user, item) for place, item in enumerate(items)]
        if user < 30:
            rows += [(90 + rng.random(), user, 0), (95 + rng.random(), user, NEW)]
    rows.sort()
    time, user, item = (np.array(column) for column in zip(*rows, strict=True))
    texts = [f"word{item // 2 if item != NEW else 0} thing" for item in range(NEW + 1)]
    return Dataset(Events(user.astype(np.int64), item.astype(np.int64), time, np.zeros(len(time), np.int64)),
                   [f"{u}" for u in range(160)], [f"{i}" for i in range(NEW + 1)], ["x"], texts, {}, "h")


@pytest.fixture(scope="module")
def context(data):
    return Context(data, stream_time(data, 0.7), SETTINGS, language)


def hits(context, name, control=None, k=1):
    """Return the share of seconds of pairs, and of the new item, among the first k."""
    ranks = train(SYSTEMS[name], control, context).rank(FRESH).ranks
    target = context.split.test.item[ranks.rows]
    hit = recall(ranks.rank, k)
    return hit[(target % 2 == 1) & (target != 1)].mean(), hit[target == NEW].mean()


def test_a_walk_and_the_closed_form_find_the_second_of_a_pair(context):
    for name in ("walk", "evidence"):
        second, new = hits(context, name)
        assert second > 0.9, name
        assert new == 0, name  # nobody had it
    assert hits(context, "popularity", k=5)[0] < 0.35


def no_encoder():
    raise AssertionError("a sentence encoder was opened")


def test_words_find_an_item_that_nobody_had(data):
    context = Context(data, stream_time(data, 0.7), SETTINGS, language, items=no_encoder)
    second, new = hits(context, "evidence", "words", k=3)
    assert second > 0.9
    assert new > 0.9


def test_every_part_is_a_row(data):
    encoded = np.eye(NEW + 1, dtype=np.float32)
    encoded[NEW] = encoded[0]
    known = ItemKnowledge([""] * (NEW + 1), [f"also{i // 2 if i != NEW else 0} x" for i in range(NEW + 1)], encoded)
    texts = replace(data, texts=[f"t{i} common" for i in range(NEW + 1)])
    context = Context(texts, stream_time(texts, 0.7), SETTINGS, language, items=lambda: replace(
        known, texts=texts.texts))
    assert hits(context, "evidence", "words", k=3)[1] == 0  # the texts say nothing
    assert hits(context, "evidence", "encoder", k=3)[1] > 0.9
    assert hits(context, "evidence", "written", k=3)[1] > 0.9
    assert set(PARTS) == {None, *SYSTEMS["evidence"].controls()}


@pytest.mark.parametrize(("control", "says"), [("written", "freshet describe"), ("encoder", "FRESHET_ITEMS_ENCODER")])
def test_a_part_of_which_nothing_is_known_is_said(data, control, says):
    nothing = Context(data, stream_time(data, 0.7), SETTINGS, language, items=lambda: ItemKnowledge(data.texts))
    for name in ("evidence", "dense+evidence"):
        with pytest.raises(FreshetError, match=says):
            train(SYSTEMS[name], control, nothing)


def test_untrained_rows_take_every_protocol_and_say_what_they_chose(data):
    context = Context(data, leave_one_out(data), SETTINGS, language)
    for name in ("popularity", "walk", "evidence"):
        trained = train(system_named(name), None, context)
        outcome = trained.rank(FRESH)
        assert (outcome.ranks.rows == context.split.rows()).all()
        assert outcome.reference is None
        assert np.isfinite(outcome.ranks.logp).all()
        assert trained.about["ndcg_at_10"] >= 0
        assert not system_named(name).needs_llm


def test_words_as_features_need_no_language_model(context):
    trained = train(SYSTEMS["words"], None, context)
    assert (trained.rank(FRESH).ranks.rows == context.split.rows()).all()


@pytest.mark.parametrize("name", ["popularity", "walk", "evidence", "dense+evidence", "words"])
def test_rows_for_comparison_are_not_served(name):
    with pytest.raises(FreshetError, match="cannot be served; `freshet evaluate`"):
        served_system(name)
    assert served_system("freshet") is SYSTEMS["freshet"]


@pytest.mark.parametrize("split", [stream_time, leave_one_out])
def test_transformer_and_closed_form_together_are_the_reference(data, split):
    context = Context(data, split(data), SETTINGS, language)
    outcome = train(SYSTEMS["dense+evidence"], None, context).rank(FRESH)
    assert outcome.reference is None
    assert (outcome.ranks.rank == context.reference_ranks().rank).all()
    if split is stream_time:  # with a transformer of one epoch, which knows little
        assert hits(context, "dense+evidence")[0] > 0.8
        assert hits(context, "dense")[0] < 0.5
        words = train(SYSTEMS["dense+evidence"], "words", context).rank(FRESH)
        new = context.split.test.item[words.ranks.rows] == NEW
        # No held-out event is on the new item, so the gain follows the others; words still move it up.
        assert words.reference is not None
        assert words.ranks.rank[new].mean() < words.reference.rank[new].mean() - 5
