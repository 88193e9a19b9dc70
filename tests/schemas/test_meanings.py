from __future__ import annotations

from math import inf

import pytest

from schemas.errors import SettingsError
from schemas.settings import Settings, load, to_environ
from schemas.settings.meanings import DAY_S, NAMES, SPELLINGS, Meaning, Meanings, again_after_s


@pytest.mark.parametrize(("kind", "effect"), [
    ("view", "interest"), ("Product Viewed", "interest"), ("add_to_cart", "interest"), ("rating", "interest"),
    ("purchase", "taken"), ("Order Completed", "taken"), ("watched", "taken"), ("order_refunded", "against"),
    ("Dislike", "against"), ("skip", "against"), ("impression", "neutral"), ("remove_from_cart", "neutral"),
])
def test_names_of_common_trackers_have_a_meaning(kind: str, effect: str) -> None:
    meaning = Meanings()[kind] or Meaning()
    assert (meaning.effect, meaning.known) == (effect, True)


def test_a_name_has_one_meaning() -> None:
    every = [name for names in NAMES.values() for name in names]
    assert len(every) == len(set(every))


def test_the_shops_table_comes_first_and_the_rest_is_interest() -> None:
    meanings = Meanings({"Lend Out": "taken:2.5", "view": "neutral"})
    assert meanings["lend_out"] == Meaning("taken", 2.5)
    assert meanings["View"] == Meaning("neutral", 0.0)
    assert meanings["com.shop.thing"] == Meaning("interest", 1.0, known=False)
    assert meanings["click"] is None
    assert [meanings.evidence(kind) for kind in ("View", "click", "lend-out", "return")] == [False, True, True, False]


def test_types_that_are_ids_do_not_fill_the_memory() -> None:
    meanings = Meanings()
    for n in range(SPELLINGS + 100):
        assert meanings[f"type {n}"] is not None
    assert len(meanings) == SPELLINGS


@pytest.mark.parametrize(("text", "says"), [
    ("a=sold", "'sold' is no effect; write interest, taken, against, neutral"),
    ("a=taken:much", "'much' is no weight"), ("a=against:2", "the weight of against is negative"),
    ("a=interest:0", "the weight of interest is positive"), ("a=neutral:1", "neutral has no weight"),
    ("a=taken:nan", "the weight of taken is positive"), ("a=taken:1e9", "at most 1000"),
    ("Add It=taken,add_it=against", "are the same event type"), (f"{'a' * 65}=taken", "cannot be an event type"),
    ("taken", "write NAME=VALUE"),
])
def test_a_mistake_in_the_table_is_one_line_that_says_what_to_write(text: str, says: str) -> None:
    with pytest.raises(SettingsError, match=r"events\.meanings") as error:
        load({"FRESHET_EVENTS_MEANINGS": text})
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_the_table_reaches_child_processes() -> None:
    settings = load({"FRESHET_EVENTS_MEANINGS": "lend=taken, Sent Back=against:-0.5",
                     "FRESHET_RANKING_REPEAT": "after 30 days", "FRESHET_RANKING_REPEAT_TAKEN": "always"})
    assert load(to_environ(settings)) == settings
    assert settings.events.meaning["sent back"] == Meaning("against", -0.5)
    assert (settings.ranking.repeats.interest, settings.ranking.repeats.taken) == (30 * DAY_S, 0.0)
    assert Settings().ranking.repeats.never


def test_when_an_item_may_come_again() -> None:
    assert [again_after_s(text) for text in ("never", "Always", "after 30 days", "1 day", "1.5d")] == [
        inf, 0.0, 30 * DAY_S, DAY_S, 1.5 * DAY_S]
    with pytest.raises(SettingsError, match=r"ranking\.repeat: .*write never, always, or after 30 days"):
        load({"FRESHET_RANKING_REPEAT": "sometimes"})
