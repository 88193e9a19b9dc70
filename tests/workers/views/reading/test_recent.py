"""Figures of the last hour, by the broker's clock; who took an item."""

from __future__ import annotations

import pytest

from schemas.codec import encode
from tests.workers.views.reading.sent import T0, recommendation, update
from workers.views.reading import recent as module
from workers.views.reading.recent import MINUTES, Recent, quality, spread
from workers.views.reading.records import LIST, MADE

NOW = T0 - T0 % 60 + 90.0  # half way through a minute


def made(**more):
    return MADE.decode(encode(update(**more)))


def shown(**more):
    return LIST.decode(encode(recommendation(**more)))


def test_each_minute_has_its_own_numbers():
    recent = Recent()
    recent.refreshed(NOW - 60, made(reason="drift"))
    recent.refreshed(NOW - 60, made(reason="drift"))
    recent.refreshed(NOW, made(reason="stale"))
    recent.shown(NOW, shown(version=1))
    recent.shown(NOW, shown(items=("i2", "i3"), version=1))
    recent.shown(NOW, shown())
    recent.events(NOW, 5)
    recent.buried(NOW)
    recent.contradicted(NOW)
    *rest, before, last = recent.minutes(NOW)
    assert (before.refreshes, last.refreshes) == ({"drift": 2}, {"stale": 1})
    assert (last.lists, last.changed, last.events, last.letters, last.contradictions) == (
        {"fused": 2, "reference": 1}, 1, 5, 1, 1)
    assert last.at == NOW - 30
    assert len(rest) == MINUTES - 2
    assert not any(one.events or one.refreshes for one in rest)


def test_an_hour_is_kept_whatever_order_records_come_in():
    recent = Recent()
    for minute in (0, 59, 60, 5, 120, 61, 30):
        recent.events(NOW + 60 * minute, 1)
    assert [one.at for one in recent.minutes(NOW + 60 * 120) if one.events] == [
        NOW - 30 + 60 * minute for minute in (61, 120)]
    assert len(recent._minutes) <= MINUTES


def test_freshness_is_from_cause_to_effect():
    recent = Recent()
    for second in range(1, 101):
        recent.refreshed(NOW, made(generated_at=T0 + second))
    recent.refreshed(NOW, made(generated_at=T0 + 1e6, written=False))  # nobody could read that
    assert (recent.knowledge_freshness.count, recent.knowledge_freshness.p50, recent.knowledge_freshness.p99) == (
        100, 51.0, 100.0)
    recent.shown(NOW, shown())
    assert recent.list_freshness.p50 == 1.0
    assert recent.mean_margin is None
    recent.judged([0.5, -0.1])
    assert recent.mean_margin == pytest.approx(0.2)


@pytest.mark.parametrize(("values", "found"), [
    ([], (0, None, None, None)), ([2.0], (1, 2.0, 2.0, 2.0)), ([3.0, 1.0], (2, 3.0, 3.0, 3.0))])
def test_quantiles_of_few(values, found):
    one = spread(values)
    assert (one.count, one.p50, one.p90, one.p99) == found


def test_the_newest_takers_of_an_item_are_kept(monkeypatch):
    monkeypatch.setattr(module, "TAKERS", 3)
    recent = Recent()
    for number in (4, 1, 5, 2, 3):
        recent.took(f"u{number}", ["i1"], [float(number)])
    recent.took("u5", ["i1"], [0.0])  # an older event of one who is there
    assert [(one.user_id, one.event_time) for one in recent.takers("i1")] == [("u5", 5.0), ("u4", 4.0), ("u3", 3.0)]
    recent.took("u3", ["i1"], [9.0])
    assert recent.takers("i1")[0].user_id == "u3"
    assert recent.takers("other") == ()


def test_items_are_bounded(monkeypatch):
    monkeypatch.setattr(module, "ITEMS", 2)
    recent = Recent()
    for item in ("a", "b", "a", "c"):
        recent.took("u", [item], [float(len(recent._takers))])
    assert len(recent._takers) == 2
    assert recent.takers("c")


def test_the_interval_of_quality_counts_users_not_events():
    assert quality([]) is None
    one = quality([("u1", 1.0, 0.5)] * 100)
    assert (one.served, one.reference, one.low, one.high) == (1.0, 0.5, 0.5, 0.5)
    # Two users who disagree: however many events they have, nothing is known of a third.
    for n in (1, 500):
        found = quality([("u1", 1.0, 0.0)] * n + [("u2", 0.0, 1.0)] * n)
        assert (found.low, found.high) == pytest.approx((-1.386, 1.386), abs=1e-3)
    spread_out = quality([(f"u{n}", float(n % 2), float((n + 1) % 2)) for n in range(1000)])
    assert spread_out.high < 0.07
