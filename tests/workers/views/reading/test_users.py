"""From a user's rows to facts."""

from __future__ import annotations

import math

import pytest

from schemas.codec import encode
from schemas.errors import FreshetError
from schemas.settings import RefreshSettings
from streams.profile.state import Pending, dumps
from tests.workers.fitted import CALIBRATION
from tests.workers.views.reading.sent import T0, recommendation, request, state, update
from workers.views.reading import tables
from workers.views.reading.records import ASKED, LIST, MADE, KeptRefresh
from workers.views.reading.users import UserLimits, refreshes, shown_lists, user_facts

TITLES = {"i1": "One", "i2": "Two"}
LIMITS = UserLimits(5.0, 2.0, 0.05)


def title(item: str) -> str:
    return TITLES.get(item, "")


def kept(*sent):
    return [LIST.decode(encode(one)) for one in sent]


def test_lists_are_newest_first_with_titles_and_texts():
    newest, older = shown_lists(kept(
        recommendation(items=("i1",), count=1), recommendation(items=("i2", "i9"), count=2, written={"i2": "nice"})),
        title)
    assert (newest.count, older.count) == (2, 1)
    assert [(item.item_id, item.title, item.score, item.written) for item in newest.items] == [
        ("i2", "Two", 0.0, "nice"), ("i9", "", -1.0, "")]
    assert [(item.item_id, item.title) for item in newest.reference] == [("i2", "Two"), ("i3", "")]


def test_a_refresh_says_why_when_and_what_it_changed():
    parts = {1: KeptRefresh(ASKED.decode(encode(request(version=1))), MADE.decode(encode(
                update(version=1).model_copy(update={"spent_s": 0.25, "spent_tokens": 5.0})))),
             2: KeptRefresh(ASKED.decode(encode(request(version=2, reason="drift")))), 3: KeptRefresh()}
    lists = kept(recommendation(items=("i1", "i2")), recommendation(items=("i2", "i3"), version=1))
    asked, made = refreshes(parts, lists, title)
    assert (asked.version, asked.reason, asked.generated_at, asked.freshness_s, asked.gained) == (
        2, "drift", None, None, None)
    assert (made.requested_at, made.generated_at, made.freshness_s, made.written) == (T0 + 1, T0 + 4, 4.0, True)
    assert (made.seconds, made.tokens, asked.seconds) == (0.25, 5.0, None)
    assert [one.item_id for one in made.gained or ()] == ["i3"]
    assert [one.title for one in made.lost or ()] == ["One"]


def test_a_state_has_its_statistics_beside_their_limits():
    pending = Pending(7, "drift", b"", 3, "e", T0, T0, T0, 0.5)
    found = user_facts(dumps(state(
        "i1", "i2", "i9", cusum=1.5, drifted=True, trust=0.25, standing=0.5, log_wealth=[1.0, 1.0, 1.0],
        margins=[0.5, -0.5], seen={"i8": None}, pending=pending)), T0, LIMITS, title)
    assert [(one.item_id, one.title, one.count) for one in found.history] == [
        ("i9", "", 3), ("i2", "Two", 2), ("i1", "One", 1)]
    assert (found.drift.value, found.drift.threshold, found.drift.drifted) == (1.5, 5.0, True)
    assert (found.trust.trust, found.trust.log_wealth, found.trust.help_log_wealth) == (0.25, 1.0, 0.0)
    assert found.trust.log_limit == pytest.approx(math.log(20))
    assert (found.pending, found.pending_reason, found.seen, found.updated_at) == (7, "drift", 1, T0)


def test_bytes_that_are_no_state_are_an_error():
    with pytest.raises(FreshetError):
        user_facts(b"\xc1", T0, LIMITS, title)


@pytest.mark.parametrize(("setting", "fitted", "limits"), [
    (None, CALIBRATION, UserLimits(5.0, 2.0, 0.05)), (3.0, CALIBRATION, UserLimits(3.0, 2.0, 0.05)),
    (None, None, UserLimits(None, None, 0.05)), (3.0, None, UserLimits(3.0, None, 0.05))])
def test_a_setting_goes_before_what_was_fitted(setting, fitted, limits):
    assert UserLimits.of(RefreshSettings(drift_threshold=setting), fitted) == limits


def test_rows_that_are_not_there_are_empty():
    assert (tables.lists_in(None), tables.refreshes_in(None), tables.margins_in(None), tables.steps_in(None)) == (
        [], {}, [], [])
