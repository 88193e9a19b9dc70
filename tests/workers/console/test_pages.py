"""Every page filled, empty and with hostile texts: what it says, where its links lead, and that nothing runs."""

from __future__ import annotations

import csv
import re
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote
from xml.etree import ElementTree

import pytest
from starlette.testclient import TestClient

from models.data.account import Account
from models.data.loading import load_dataset
from schemas.settings import ConsoleSettings, Settings
from tests.workers.console.filled import HOSTILE, NOW, FilledViews, empty, filled
from tests.workers.console.pages import Page
from tests.workers.console.shown import FixedViews
from workers.console.pages import comparing, drawing, timeline
from workers.console.pages.comparing import hex_rows, plain, side_by_side
from workers.console.pages.rendering import HERE, HTMX
from workers.console.server import create_app
from workers.data.produce import read_file

PATHS = ("/", "/dead-letters", "/models", "/experiments", "/settings", "/search", "/search?q=nobody%20<b>")


def client(views: FixedViews, token: str = "") -> TestClient:
    settings = replace(Settings(), console=ConsoleSettings(token=token))
    return TestClient(create_app(views, settings), base_url="http://localhost", follow_redirects=False)


def paths(views: FilledViews) -> list[str]:
    user, item = next(iter(views.users)), next(iter(views.items))
    letters = [f"/dead-letters/{group.newest[0].number}" for group in views.letters.groups]
    return [*PATHS, f"/user?id={quote(user, safe='')}", f"/item?id={quote(item, safe='')}", *letters]


@pytest.mark.parametrize("hostile", [False, True], ids=["plain", "hostile"])
@pytest.mark.parametrize("token", ["", "t0ken"], ids=["read-only", "writable"])
def test_every_page_is_sound_and_runs_nothing(hostile: bool, token: str):
    views = filled(hostile=hostile)
    for path in paths(views):
        answer = client(views, token).get(path)
        assert answer.status_code == 200, path
        Page(answer.text).check()
        assert "script-src" in (policy := answer.headers["content-security-policy"]) or "default-src 'self'" in policy
        assert "unsafe" not in policy
        assert (answer.headers["x-frame-options"], answer.headers["cache-control"]) == ("DENY", "no-store")
        assert token == "" or token not in answer.text


@pytest.mark.parametrize("path", [*PATHS, "/user?id=nobody", "/item?id=nothing", "/dead-letters/7"])
def test_a_stack_that_has_just_begun_says_what_to_do(path: str):
    page = Page(client(empty()).get(path).text)
    page.check()
    said = [attributes for _, attributes in page.elements
            if {"empty", "message"} & set((attributes.get("class") or "").split())]
    assert said or path == "/settings", path


def test_hostile_ids_are_shown_whole_and_their_links_lead_to_their_pages():
    views = filled(hostile=True)
    user, item = next(iter(views.users)), next(iter(views.items))
    page = Page(client(views).get(f"/item?id={quote(item, safe='')}").text)
    for link in page.links:
        assert link[0] in "/#", link
    for text in HOSTILE:
        others = FilledViews(users={text: views.users[user]}, whole=replace(views.user(user), user_id=text))
        answer = client(others).get("/search", params={"q": text})
        there = client(others).get(answer.headers["location"])
        assert there.status_code == 200, text
        # A carriage return and NUL are read by a browser as a newline and as nothing.
        shown = Page(there.text).text
        assert re.sub(r"[\r\0]", "", text.strip()) in re.sub(r"[\r\0]", "", shown)


def test_titles_stand_wherever_ids_do():
    views = filled()
    page = Page(client(views).get("/user?id=412").text)
    shown = views.shown["412"][0]
    for item in (*shown.items, *shown.reference, *(event for event in views.users["412"].history)):
        assert item.title in page.text
    assert "raised by knowledge from place 10" in page.text


def test_a_users_page_says_what_was_decided_and_why():
    text = " ".join(Page(client(filled()).get("/user?id=412").text).text.split())
    for said in ("version 4 is asked for: stale", "contradiction", "after new knowledge", "version 3, 8 events behind",
                 "KL 0.043 nats, μ 1.18", "Likes crime stories with dry humour.",
                 "new knowledge starts with trust 0.50"):
        assert said in text


def test_the_picture_of_a_history_is_sound_and_complete():
    page = filled().whole
    assert page is not None
    root = ElementTree.fromstring(timeline.history(page))  # noqa: S314 - our own text
    texts = [one.text for one in root.iter("text")]
    assert {"knowledge", "events", "drift", "bet on harm", "trust", "h = 4.6", "v1", "v3", "✕", "△"} <= set(texts)
    assert len(list(root.iter("rect"))) == len(page.margins)
    width = float(root.attrib["viewBox"].split()[2])
    for one in root.iter("rect"):
        assert 0 <= float(one.attrib["x"]) <= width
        assert float(one.attrib["height"]) > 0
    late = replace(page, state=replace(page.state, history=page.state.history[:12]))  # type: ignore[type-var]
    texts = [one.text for one in ElementTree.fromstring(timeline.history(late)).iter("text")]  # noqa: S314
    assert {"v2", "v3"} <= set(texts), "the version that held when the picture begins is named"
    assert "v1" not in texts
    assert timeline.history(replace(page, state=None, refreshes=(), steps=())) == ""
    one = replace(page, state=replace(page.state, history=page.state.history[:1]), refreshes=(), steps=())  # type: ignore[type-var]
    ElementTree.fromstring(timeline.history(one))  # noqa: S314


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.0), (-1.0, 1e300), (float("nan"), 1.0), (0.0, float("inf"))])
def test_ticks_are_round_and_few(low: float, high: float):
    assert len(drawing.ticks(low, high, 5)) <= 12
    assert drawing.ticks(-0.004, 0.0161, 4) == [0.0, 0.005, 0.01, 0.015]


def test_lists_side_by_side_say_what_moved_and_why():
    views = filled()
    shown, history = views.shown["412"][0], views.users["412"].history
    first = shown.items[0]
    rows = side_by_side(shown, history, {first.item_id: [history[0].item_id]})
    assert [row.place for row in rows] == list(range(1, 11))
    assert rows[0].before == 3
    assert rows[0].why.startswith(f"raised by knowledge from place 3; goes with {history[0].title}")
    known = {one.item_id for one in shown.reference}
    assert [row.before is None for row in rows] == [one.item_id not in known for one in shown.items]
    short = side_by_side(replace(shown, items=shown.items[:2]), history, {})
    assert (len(short), short[5].shown, short[5].why) == (10, None, "")


def test_bytes_are_shown_so_that_nothing_hides():
    rows = hex_rows(b"\x00A\xff" + b"z" * 20)
    assert rows[0] == ("000000", "00 41 ff " + " ".join(["7a"] * 13), "·A·" + "z" * 13)
    assert rows[1][0] == "000010"
    assert plain("\u202eevil\u202c\x1b[2J".encode(), 100) == "\\u202eevil\\u202c\\x1b[2J"
    assert plain(b"\xff" * 10, 3) == "\\xff\\xff\\xff…"


def test_a_users_events_come_as_a_file_that_produce_and_replay_take(tmp_path: Path):
    views = filled()
    answer = client(views).get("/user/events.csv?id=412")
    assert answer.headers["content-disposition"] == 'attachment; filename="events.csv"'
    path = tmp_path / "events.csv"
    path.write_bytes(answer.content)
    events = list(read_file(str(path), Account(str(path)), Settings().events))
    assert [(one.user_id, one.item_id, one.event_time, one.event_type) for one in events] == [
        ("412", one.item_id, one.event_time, one.event_type) for one in reversed(views.users["412"].history)]
    replayed = load_dataset(path, Settings().events)
    assert (replayed.users, len(replayed.events.time)) == (["412"], len(events))
    assert client(views).get("/user/events.csv?id=nobody").status_code == 404
    hostile = filled(hostile=True)
    user = next(iter(hostile.users))
    rows = list(csv.reader(client(hostile).get("/user/events.csv", params={"id": user}).text.splitlines()))
    assert {row[0] for row in rows[1:]} >= {user}


def test_an_address_without_a_page_says_so_and_programs_get_their_own_answer():
    answer = client(FixedViews()).get("/<script>alert(1)</script>")
    assert (answer.status_code, "There is no page" in answer.text) == (404, True)
    Page(answer.text).check()
    assert client(FixedViews()).get("/v1/nothing").headers["content-type"] == "application/problem+json"


def test_models_say_what_pays_with_its_interval():
    page = Page(client(filled()).get("/models").text)
    text = " ".join(page.text.split())
    for said in ("behaviour: transformer and closed form", "+0.0031", "+0.0011 +0.0052 yes", "-0.0019 +0.0011 no",
                 "yes, asked for", "no better than without", "20261120-101500-ab12cd+harvest-3"):
        assert said in text
    pictures = [one["aria-label"] for one in page.all("svg") if "small" in (one.get("class") or "")]
    assert pictures == ["-0.0019 to +0.0011", "+0.0011 to +0.0052", "-0.0020 to -0.0001"]


def test_an_experiment_says_its_uplift_with_its_interval():
    text = " ".join(Page(client(filled()).get("/experiments").text).text.split())
    for said in ("+0.0060", "95% interval +0.0017 to +0.0103", "1,790 users", "Knowledge helps"):
        assert said in text


def test_a_runbook_section_that_is_a_warning_is_one_of_the_runbook():
    text = (Path(__file__).parents[3] / "docs" / "operations.md").read_text()
    for section in comparing._WARNINGS:
        assert f"### {section}" in text, section
    assert [comparing.severity(one) for one in filled().overview().problems] == ["broken", "warning"]


def test_the_overview_leads_with_what_is_wrong():
    text = " ".join(Page(client(filled()).get("/").text).text.split())
    assert text.index("Knowledge has finished nothing for 34 s") < text.index("Events per second")
    assert "Knowledge helps: the 95% interval from +0.0009 to +0.0059 lies above 0." in text
    assert "Nothing is wrong" in client(FixedViews()).get("/").text
    assert "hx-get=\"/live\"" in client(FixedViews()).get("/live").text


def test_a_search_goes_to_the_only_match_or_lists_them():
    views = filled()
    assert client(views).get("/search?q=412").headers["location"] == "/user?id=412"
    assert client(views).get("/search?q=fargo").headers["location"] == "/item?id=100"
    both = replace(views, users={"100": views.users["412"]})
    assert {"/user?id=100", "/item?id=100"} <= set(Page(client(both).get("/search?q=100").text).links)


def test_ages_and_times_that_no_calendar_holds_are_shown():
    views = filled()
    odd = replace(views.whole, state=replace(views.users["412"], history=tuple(  # type: ignore[type-var]
        replace(one, event_time=1e300) for one in views.users["412"].history)))
    Page(client(replace(views, whole=odd)).get("/user?id=412").text).check()
    assert timeline.moment(float("nan")) == ""
    assert timeline.moment(NOW) == "28 Nov 2026 14:00"


def test_nothing_is_loaded_from_elsewhere_and_the_script_is_the_vendored_one():
    for path in (HERE / "static").glob("*.css"):
        assert not re.search(r"url\(|@import|http", path.read_text()), path
    answer = client(FixedViews()).get(f"/static/{HTMX}")
    assert answer.status_code == 200
    assert "htmx" in (Path(__file__).parents[3] / "NOTICE").read_text()
    for path in (HERE / "templates").glob("*.j2"):
        assert "|safe" not in path.read_text().replace(" ", ""), path


def test_both_colour_schemes_have_every_colour():
    text = (HERE / "static" / "console.css").read_text()
    light, dark = re.findall(r":root \{(.*?)\}", text, re.DOTALL)[:2]
    named = [set(re.findall(r"(--[a-z-]+):", part)) for part in (light, dark)]
    assert named[0] - {"--mono"} == named[1]
    assert set(re.findall(r"var\((--[a-z-]+)\)", text)) <= named[0]


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_every_text_can_be_read(scheme: int):
    """Contrast of at least 4.5 to 1, WCAG's level AA, of every colour of text on every ground it stands on."""
    text = (HERE / "static" / "console.css").read_text()
    colours = dict(re.findall(r"(--[a-z-]+): #([0-9a-f]{6})", re.findall(r":root \{(.*?)\}", text, re.DOTALL)[scheme]))

    def luminance(name: str) -> float:
        parts = [int(colours[name][at:at + 2], 16) / 255 for at in (0, 2, 4)]
        red, green, blue = (one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    grounds = {"--ground", "--panel", "--faint"}
    pairs = {(ink, ground) for ink in ("--ink", "--soft", "--accent", "--bad") for ground in grounds}
    pairs |= {("--ink", wash) for wash in ("--wash", "--bad-wash", "--warn-wash")} | {("--panel", "--accent")}
    for one, other in pairs:
        low, high = sorted((luminance(one), luminance(other)))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (one, other)
