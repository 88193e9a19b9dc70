"""Stories: which user each is about, what it says of them, and what it says where nobody is like that."""

from __future__ import annotations

from math import e, log

import pytest

from schemas.messages import KnowledgeRequest, KnowledgeUpdate, Recommendation, ScoredItem
from streams.profile.state import UserState
from workers.demo.cost import cost
from workers.demo.curve import curve
from workers.demo.diary import Diary, Requested, Shown, Turn
from workers.demo.stories import Pulse, chosen, pulses, shift, themes, told, words_of

WORDS = {"a": ["space"], "b": ["space", "war"], "c": ["love"], "d": ["love", "paris"], "e": ["space", "paris"], "f": []}


def words(item: str) -> list[str]:
    return WORDS.get(item, [])


def request(version: int, reason: str, count: int, history: str, user: str = "u") -> KnowledgeRequest:
    return KnowledgeRequest(
        user_id=user, version=version, reason=reason, history=list(history), count=count, event_id="e", event_time=0,
        caused_at=0, requested_at=0)


def update(version: int, count: int, user: str = "u", took: float = 0.5) -> KnowledgeUpdate:
    return KnowledgeUpdate(user_id=user, version=version, model_version="m", reason="drift", count=count, event_time=0,
                           history_hash="", caused_at=10.0, generated_at=10.0 + took)


def shown(items: str, reference: str, count: int, version: int = 0, user: str = "u") -> Recommendation:
    return Recommendation(
        user_id=user, items=[ScoredItem(item_id=item, score=-1.0) for item in items], reference=list(reference),
        source="fused" if version else "reference", fallback=None if version else "no_trust", reason="event",
        lagrange=1.0 if version else None, kl=0, epsilon=0.2, knowledge_version=version, knowledge_age_s=None,
        knowledge_behind=None, model_version="m", event_time=0, count=count, caused_at=0, requested_at=0, ranked_at=0)


def turn(user: str = "u", reason: str = "drift", before: str = "ab", after: str = "cd", reference: str = "xy",
         count: int = 5, previous: str = "cdcd", history: str = "aabe") -> Turn:
    return Turn(user, Requested(2, reason, count, tuple(history)), Requested(1, "cold_start", 2, tuple(previous)),
                Shown(tuple(before), tuple("xy"), count - 1, "fused", 0.2),
                Shown(tuple(after), tuple(reference), count + 1, "fused", 0.2), 0.5)


def test_a_turn_has_the_last_list_with_the_old_knowledge_and_the_first_with_the_new() -> None:
    diary = Diary()
    diary.recommended(shown("ab", "ab", 3))
    diary.requested(request(1, "cold_start", 4, "pq"))
    diary.refreshed(update(1, 4, took=0.25))
    diary.recommended(shown("ac", "ab", 5, version=1))
    diary.recommended(shown("ad", "ab", 6, version=1))
    diary.requested(request(2, "contradiction", 7, "pqr"))
    diary.requested(request(2, "contradiction", 7, "pqr"))  # delivered again
    diary.recommended(shown("ab", "ab", 8))  # not trusted: behaviour alone
    diary.refreshed(update(2, 7))
    diary.recommended(shown("ef", "ab", 8, version=2))
    diary.recommended(shown("eg", "ab", 9, version=2))
    first, second = diary.turns
    assert (first.asked.reason, first.previous, first.before.items, first.after.items) == (
        "cold_start", None, ("a", "b"), ("a", "c"))
    assert first.took_s == pytest.approx(0.25)
    assert (second.asked.history, second.previous.version) == (("p", "q", "r"), 1)
    assert (second.before.items, second.after.items) == (("a", "d"), ("e", "f"))


def test_knowledge_that_nobody_asked_for_in_this_run_makes_no_turn() -> None:
    diary = Diary()
    diary.recommended(shown("ab", "ab", 3, version=4))
    assert diary.turns == []


def test_the_story_is_about_the_list_that_knowledge_changed_most_whatever_came_next() -> None:
    by_behaviour = turn("v", after="cd", reference="cd", count=50)
    one, two = turn("w", after="cb", reference="xy"), turn("x", after="cd", reference="xy")
    other = turn("y", reason="contradiction", after="pqr")
    turns = [by_behaviour, one, two, other]
    assert chosen(turns, "drift") == (two, 3)
    assert chosen(list(reversed(turns)), "drift") == (two, 3)
    assert chosen(turns, "cold_start") == (None, 0)
    assert chosen([turn("a"), turn("b")], "drift")[0].user == "b", "equal ones by their ids"
    new = [turn("p", "cold_start", count=9), turn("q", "cold_start", after="ab", count=8)]
    assert chosen(new, "cold_start") == (new[1], 2), "the newest user"


def test_a_story_tells_what_changed_and_what_came_of_it() -> None:
    taken = [*"aabe?", *"?", *"dxzab"]  # the list after includes 6 events
    found = told(turn(), 7, taken, words, [Pulse(2, 0.1, 0), Pulse(3, 2.0, 0), Pulse(4, 4.0, 0), Pulse(5, 8.0, 0),
                                          Pulse(6, 0.0, 0)], {"drift": 7.0})
    assert found.among == 7
    assert (found.more, found.less) == (("space",), ("love", "paris"))
    assert [(row.before, row.after, row.entered, row.by_knowledge) for row in found.rows] == [
        ("a", "c", True, True), ("b", "d", True, True)]
    assert [(one.item, one.after, one.before, one.reference) for one in found.later] == [
        ("d", 2, 0, 0), ("x", 0, 0, 1), ("z", 0, 0, 0), ("a", 0, 1, 0), ("b", 0, 2, 0)]
    assert found.pulses == ((3, 2.0), (4, 4.0), (5, 8.0)), "since the knowledge before, up to the request"
    assert found.threshold == 7.0


def test_the_bet_against_knowledge_is_drawn_as_a_logarithm() -> None:
    found = told(turn(reason="contradiction"), 1, "", words, [Pulse(4, 0, -0.5), Pulse(5, 0, 3.2)],
                 {"contradiction": e**3})
    assert found.pulses == ((4, 0.0), (5, 3.2))
    assert found.threshold == pytest.approx(3.0)
    assert told(turn(), 1, "", words).pulses == (), "nothing was recorded"


def test_an_item_that_entered_has_the_words_of_several_newest_items() -> None:
    found = told(turn(after="eb", before="b", reference="b"), 1, "", words)
    assert [row.tags for row in found.rows] == [("space",), ()]  # "paris" and "war" are of one newest item each


def test_words_rise_and_fall_by_their_share_and_one_item_is_no_theme() -> None:
    assert shift("cdcd", "abcc", words, {}) == (("space",), ("paris", "love"))  # "love": from all to half of them
    assert shift("ab", "ab", words, {}) == ((), ())


def test_a_headline_has_no_people() -> None:
    assert themes(["with Hanks", "war", "by Allen", "romance", "paris"], 2) == "war and romance"
    assert themes(["a", "b", "c", "d"], 3) == "a, b and c"
    assert [themes(["war"], 2), themes(["with Hanks"], 2), themes([], 2)] == ["war", "", ""]


def test_of_a_first_history_what_is_more_frequent_than_usual_counts() -> None:
    assert shift("", "abcd", words, {"love": 0.1, "space": 0.5}) == (("love",), ())
    assert shift("", "abcd", words, {}) == (("love", "space"), ())


def test_words_are_what_a_language_model_wrote_else_the_attributes() -> None:
    found = words_of({"1": "Toy Story (1995). Animation, Comedy", "2": "Dr. No. Action", "3": "Up"},
                     {"1": "Toy Story (1995)", "2": "Dr. No", "3": "Up"},
                     {"1": "dir-lasseter buddy-movie act-hanks", "3": "a balloon, a boy"})
    assert found("1") == ["by Lasseter", "buddy movie", "with Hanks"]
    assert (found("2"), found("3"), found("9")) == (["action"], ["a balloon", "a boy"], [])


def test_statistics_are_those_of_the_last_state_at_a_count() -> None:
    found = pulses([UserState(count=2, cusum=1.0), UserState(count=3, cusum=2.0, log_wealth=[1.0, 1.0, 1.0]),
                    UserState(count=2, cusum=1.5)])
    assert [(one.count, one.cusum, one.wealth) for one in found] == [(2, 1.5, 0.0), (3, 2.0, pytest.approx(1.0))]


def test_a_curve_is_text_alone_and_escapes_its_label() -> None:
    drawn = curve([(1, 0.0), (2, 3.0), (3, 9.0)], log(20), '<script>"x"')
    assert drawn.startswith("<svg")
    assert "<script>" not in drawn
    assert 'class="crossed"' in drawn
    assert 'class="below"' in curve([(1, 0.0), (2, 1.0)], 3.0, "")
    assert curve([(1, 0.0)], 3.0, "") == ""


def test_cost_is_per_user_and_says_what_is_not_known() -> None:
    found = cost({"generated": 30, "llm_calls": 4, "llm_tokens": 240, "generate_s": 3.6}, 20, 600, per_hour=2.0)
    assert found["per_user"] == {"generations": 1.5, "passes": 0.2, "tokens": 12.0, "seconds": pytest.approx(0.18)}
    assert (found["per_1000_events"], found["price"]) == (50.0, pytest.approx(0.002))
    unknown = cost({"generated": "x"}, 0, 0)
    assert unknown["total"]["seconds"] is None
    assert unknown["price"] is None
