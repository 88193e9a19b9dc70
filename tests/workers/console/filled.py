# ruff: noqa: E501
"""Views with something on every page, for tests of the pages; `filled(hostile=True)` has texts that attack a page."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from tests.workers.console.shown import FixedViews
from workers.views.facts import (
    DriftStatistic,
    ItemPage,
    JudgedMargin,
    Letter,
    NamedItem,
    PastEvent,
    Refresh,
    ShownList,
    StateStep,
    StoredKnowledge,
    Taker,
    TrustState,
    UserFacts,
    UserPage,
)
from workers.views.summary import (
    Deployment,
    EffectiveSetting,
    Experiments,
    LetterGroup,
    Letters,
    LiveQuality,
    Minute,
    ModelRow,
    Models,
    Overview,
    PartWorth,
    Problem,
    RoleState,
    Spread,
)

NOW = 1_795_874_400.0
# What a producer may put into ids and titles; every one would run, hide or break something on a careless page.
HOSTILE = (
    "<script>document.title='owned'</script>", "\"><img src=x onerror=\"document.title='owned'\">",
    "'-document.title-'", "\u202egnp.exe\u202c", "𝔘" * 256, "{{ 7 * 7 }}", "javascript:document.title='owned'",
    "</title><svg onload=document.title='owned'>", "..", "a\0b\r\nX-Evil: 1", "ab<!--", "&lt;script&gt;")
_TITLES = ("Fargo (1996)", "Star Wars (1977)", "The English Patient (1996)", "Trainspotting (1996)", "Chinatown (1974)",
           "Lone Star (1996)", "Pulp Fiction (1994)", "Brazil (1985)", "Blade Runner (1982)", "Sense and Sensibility (1995)",
           "Heat (1995)", "The Godfather (1972)", "L.A. Confidential (1997)", "Twelve Monkeys (1995)")


@dataclass
class FilledViews(FixedViews):
    """Fixed views with whole pages."""

    whole: UserPage | None = None
    at_a_glance: Overview | None = None
    fitted: Models | None = None
    trial: Experiments | None = None
    rows: tuple[EffectiveSetting, ...] = ()

    def user(self, user_id: str) -> UserPage:
        if self.whole is None or self.whole.user_id != user_id:
            return super().user(user_id)
        return self.whole

    def overview(self) -> Overview:
        return self.at_a_glance or super().overview()

    def models(self) -> Models:
        return self.fitted or super().models()

    def experiments(self) -> Experiments:
        return self.trial or super().experiments()

    def settings(self) -> tuple[EffectiveSetting, ...]:
        return self.rows


def filled(*, hostile: bool = False, now: float = NOW) -> FilledViews:
    """Return them.

    Args:
        hostile: ids, titles and texts are `HOSTILE`.
        now: seconds since 1970 at which everything has just happened.
    """
    def text(number: int, otherwise: str) -> str:
        return HOSTILE[number % len(HOSTILE)] if hostile else otherwise

    def item(number: int, score: float | None = None, written: str = "") -> NamedItem:
        return NamedItem(text(number, str(100 + number)), text(number + 1, _TITLES[number % len(_TITLES)]), score, written)

    user_id = text(0, "412")
    history = tuple(PastEvent(item(n % 14).item_id, item(n % 14).title, text(n, "rating"), now - 300.0 * (40 - n), n)
                    for n in range(40, 4, -1))
    margins = tuple(JudgedMargin(f"e{n}", item(n % 14).item_id, item(n % 14).title, n, 0.3 * math.sin(n * 1.7) + (
        0.12 if n < 24 or n > 32 else -0.3), 2 if n < 32 else 3, now - 300.0 * (40 - n)) for n in range(40, 8, -1))
    refreshes = (
        Refresh(4, "stale", now - 40.0, 40, now - 40.0, now - 39.0),
        Refresh(3, "contradiction", now - 2400.0, 32, now - 2400.0, now - 2399.0, 1.0, now - 2394.0, "20261120-101500-ab12cd",
                5.6, True, (item(3), item(5), item(7), item(9)), (item(2),), 0.8, 96),
        Refresh(2, "drift", now - 4800.0, 21, now - 4800.0, now - 4799.0, 1.0, now - 4797.0, "20261120-101500-ab12cd", 2.9,
                True, (item(1),), (item(2),), 0.7, 96),
        Refresh(1, "cold_start", now - 9000.0, 8, now - 9000.0, now - 8999.0, 1.0, now - 8990.0, "20261120-101500-ab12cd",
                9.5, True, (), (), 0.9, 96))
    steps, drift, wealth, trust = [], 0.0, 0.0, 1.0
    for n in range(5, 41):
        drift = max(0.0, drift + 0.5 * math.sin(n / 3) + 0.28) if n not in (21, 32) else 0.0
        wealth = 0.0 if n == 32 else max(-1.2, wealth + (0.42 if 24 <= n < 32 else -0.12))
        trust = 0.5 if n == 32 else min(1.0, trust + 0.06) if n > 32 else max(0.0, 1 - max(0.0, wealth) / 3)
        steps.append(StateStep(n, drift, wealth, trust))
    places = (3, 8, 1, 12, 5, 0, 10, 7, 2, 11)
    shown = ShownList(
        tuple(item(n, -2.0 - i / 5, text(4, "dry humour, snow, crime that goes wrong") if i == 0 else "")
              for i, n in enumerate(places)),
        tuple(item(n) for n in (8, 1, 3, 13, 5, 6, 0, 9, 4, 12)), "fused", None, "knowledge", 1.18, 0.043, 0.1, 3, 2400.0,
        8, "20261120-101500-ab12cd", now - 30.0, 40, now - 31.0, now - 30.0, text(5, "texts-2026"), "treatment", now - 30.0)
    letters = tuple(Letter(n, "behaviour-events", n % 3, 1042 + n, text(n, reason), "streams", now - 60.0 * n, value, key)
                    for n, (reason, value, key) in enumerate((
                        ("user_id: missing", b'{"item_id": "50", "event_time": 1795874400}', None),
                        ("Invalid JSON: expected value at line 1 column 1", b"\x00\x01<script>alert(1)</script>\xff\xfe" * 20,
                         b"412"),
                        ("event_time: 12 is before 1980; in days it would be 1970-01-13",
                         b'{"user_id": "412", "item_id": "50", "event_time": 12}', b"412"))))
    state = UserFacts(
        40, 2, 1, 0, 0, history, 12, DriftStatistic(drift, 4.6, False, 30, 0.41),
        TrustState(trust, 0.5, wealth, math.log(20), 0.9, 0, (0.2, -0.1), 0.06), 3, 32, now - 2400.0,
        "20261120-101500-ab12cd", 4, "stale", now - 30.0, now - 29.0)
    whole = UserPage(
        user_id, state, (shown,), refreshes, StoredKnowledge(
            3, "20261120-101500-ab12cd", "contradiction", now - 2394.0, now - 2400.0, 32, (8, 128), (3, 17, 4, 9),
            tuple(item(n, 0.5 - n / 20) for n in range(6)), (text(1, "Likes crime stories with dry humour."),)),
        "", margins, letters[1:2], tuple(steps))
    page = ItemPage(
        item(0).item_id, True, item(0).title, {"genres": [text(2, "Crime"), text(3, "Drama")], text(4, "year"): 1996},
        text(1, "dry humour, snow, crime that goes wrong"), "20261120-101500-ab12cd",
        tuple(item(n, 0.31 / n) for n in range(1, 11)), tuple(item(n, 0.9 - n / 30) for n in range(2, 12)),
        tuple(Taker(text(n, str(400 + n)), now - 90.0 * n) for n in range(8)))
    minutes = tuple(Minute(
        now - 60.0 * (59 - n), int(900 + 420 * math.sin(n / 6) + 37 * (n % 5)),
        {"cold_start": 4, "drift": 9 + n % 4, "contradiction": n % 3, "stale": 2},
        {"fused": int(700 + 300 * math.sin(n / 6)), "items": 140, "reference": 60}, 400, n % 2, n % 3) for n in range(60))
    roles = tuple(RoleState(name, "ok" if name != "knowledge" else "stalled", "" if name != "knowledge" else text(
        0, "nothing finished for 34 s with 212 records waiting"), lag, lag_s, per_s, dead, 0, "")
        for name, lag, lag_s, per_s, dead in (
            ("streams", 12, 0.1, 1320.0, 3), ("knowledge", 212, 34.0, 0.0, 0), ("ranking", 4, 0.0, 1210.0, 0),
            ("guard", 0, 0.0, 1180.0, 0)))
    glance = Overview(
        now, True, 1_204_512, 0, 18_231, 21.4, 20.9, roles, minutes, Spread(812, 2.4, 5.0, 9.7),
        Spread(9000, 0.084, 0.2, 0.41), 0.0213, 1.84, 812, 77_952, "20261120-101500-ab12cd",
        (Problem(text(0, "knowledge has finished nothing for 34 s, 212 records wait."),
                 "Look into run/knowledge.log; it ends and is started again after 60 s.", "Lag grows"),
         Problem("3 of 1,204,512 events could not be used.", "The page of dead letters says why.", "Dead letters come in")),
        page.takers, LiveQuality(2000, 0.1021, 0.0987, 0.0009, 0.0059))
    models = Models("20261120-101500-ab12cd+harvest-3", (
        ModelRow("20261101-090000-00aa11", "", "freshet", now - 2.3e6, {"reference_ndcg_at_10": 0.0941}, (), "", ""),
        ModelRow("20261120-101500-ab12cd", "", "freshet", now - 7e5, {
            "reference_ndcg_at_10": 0.1003, "fused_ndcg_at_10": 0.1023}, (
                PartWorth("behaviour", 0.1003, 0.094, 0.107, True),
                PartWorth("words", -0.0004, -0.0019, 0.0011, False),
                PartWorth("written", 0.0031, 0.0011, 0.0052, True),
                PartWorth("user_vectors", -0.0011, -0.002, -0.0001, True)), "in_use", text(0, "")),
        ModelRow("20261120-101500-ab12cd+harvest-3", "20261120-101500-ab12cd", "", now - 9e4, {}, (), "in_use", text(
            1, "loss 2.31 → 2.18 on held-out contradictions")),
        ModelRow("20261120-101500-ab12cd+harvest-2", "20261120-101500-ab12cd", "", now - 2e5, {}, (), "rejected", text(
            2, "no better than without")),
    ), (Deployment(now - 9e4, "20261120-101500-ab12cd+harvest-3", "alignment", "alignment", text(3, ""), ""),
        Deployment(now - 7e5, "20261120-101500-ab12cd", "fit", "operator", "", "20261101-090000-00aa11")))
    path = [{"users": n, "uplift": 0.006 + 0.02 / n, "low": 0.006 - 0.19 / n ** 0.5, "high": 0.006 + 0.19 / n ** 0.5,
             "entered_at": now} for n in range(20, 2000, 20)]
    trial = Experiments(text(0, "texts-2026"), 0.1, {
        "name": text(0, "texts-2026"), "control_share": 0.1, "reward": "NDCG@10", "window_s": 86_400.0, "alpha": 0.05,
        "users": 1980, "open_users": 211, "arms": {
            "treatment": {"users": 1790, "users_with_events": 1602, "events": 8_123, "reward": 0.1021},
            "control": {"users": 190, "users_with_events": 171, "events": 855, "reward": 0.0961}},
        "uplift": 0.006, "interval": [0.0017, 0.0103], "conclusion": "Knowledge helps: the interval is above zero.",
        "users_per_day": 640.0, "forecast": {"effect": 0.01, "users_needed": 2400.0, "days_left": 0.7}, "path": path,
    }, "", now - 20.0)
    rows = (
        EffectiveSetting("FRESHET_HOME", "", "home", text(0, "/data/freshet"), ".freshet", "variable",
                         "models, caches and state", False),
        EffectiveSetting("FRESHET_KAFKA_BOOTSTRAP", "kafka", "bootstrap", "kafka:9092", "", "variable", "servers", False),
        EffectiveSetting("FRESHET_KAFKA_PARTITIONS", "kafka", "partitions", "6", "6", "default", "partitions", False),
        EffectiveSetting("FRESHET_KAFKA_SASL_PASSWORD", "kafka", "sasl_password", "set", "", "secret file", "password",
                         True))
    return FilledViews(
        users={user_id: state}, items={page.item_id: page}, shown={user_id: (shown,)}, made={user_id: refreshes},
        letters=Letters(3, 3, tuple(LetterGroup(one.topic, one.reason, 1, one.failed_at, 1, (one,)) for one in letters)),
        whole=whole, at_a_glance=glance, fitted=models, trial=trial, rows=rows)


def empty() -> FixedViews:
    """Return views of a stack that has just begun: nothing is known."""
    return replace(FixedViews(), users={}, items={}, shown={}, made={})
