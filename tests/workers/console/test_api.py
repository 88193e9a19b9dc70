"""The HTTP interface over fixed views: paths, tags, errors, keys. What views hold is `tests/workers/views`'."""

from __future__ import annotations

import base64
from dataclasses import replace
from urllib.parse import quote

import pytest
from starlette.testclient import TestClient

from schemas.errors import SettingsError
from schemas.settings import ConsoleSettings, Settings
from tests.workers.console.shown import ITEM, LIST, MADE, STATE, FixedViews
from workers.console.server import create_app
from workers.views.interface import Views

HOSTILE = (
    "a/b", "a/state", "../../etc/passwd", "%2F", "a%2Fb", "?x=1", "#", "<script>alert(1)</script>", '"\'', "ü 漢 🙂",
    " ", "\t\n\r\0", "a" * 256, "state", "recommendations/state", "{rest}", "u1/..")


def client(views: Views | None = None, **console: object) -> TestClient:
    settings = replace(Settings(), console=ConsoleSettings(**console))
    return TestClient(create_app(views or FixedViews(), settings), base_url="http://localhost:8420")


def test_recommendations_say_what_the_topic_says():
    answer = client().get("/v1/users/u1/recommendations")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert body["user_id"] == "u1"
    assert [(one["item_id"], one["title"], one["score"]) for one in body["items"]] == [
        (one.item_id, one.title, one.score) for one in LIST.items]
    assert [one["item_id"] for one in body["reference"]] == ["i2", "i3"]
    assert {name: body[name] for name in ("source", "fallback", "kl", "knowledge_version", "count")} == {
        "source": "fused", "fallback": None, "kl": 0.05, "knowledge_version": 2, "count": 9}


def test_knowledge_names_the_newest_version_that_was_made():
    body = client().get("/v1/users/u1/knowledge").json()
    assert body["version"] == MADE.version
    assert [(one["version"], one["reason"], one["generated_at"]) for one in body["versions"]] == [
        (2, "drift", None), (1, "cold_start", 903.0)]


def test_a_state_has_its_history_its_drift_and_its_trust():
    body = client().get("/v1/users/u1/state").json()
    assert body["drift"] == {"value": 2.5, "threshold": 5.0, "drifted": False}
    assert body["trust"]["trust"] == STATE.trust.trust
    assert body["history"][0]["item_id"] == "i1"


def test_an_item_has_neighbours_and_takers():
    body = client().get("/v1/items/i1").json()
    assert (body["title"], body["attributes"]) == (ITEM.title, ITEM.attributes)
    assert [one["item_id"] for one in body["by_behaviour"] + body["by_text"]] == ["i2", "i3"]
    assert body["takers"] == [{"user_id": "u1", "event_time": 1000.0}]


@pytest.mark.parametrize("path", ["/v1/users/u1/recommendations", "/v1/users/u1/knowledge", "/v1/users/u1/state",
                                  "/v1/items/i1", "/v1/openapi.json"])
def test_an_answer_that_has_not_changed_is_not_sent_again(path):
    web = client()
    tag = web.get(path).headers["etag"]
    for held in (tag, f'W/{tag}', f'"other", {tag}', "*"):
        again = web.get(path, headers={"If-None-Match": held})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    assert web.get(path, headers={"If-None-Match": '"other"'}).status_code == 200
    assert web.head(path).headers["etag"] == tag


def test_a_list_that_changed_has_another_tag():
    views = FixedViews()
    web = client(views)
    tag = web.get("/v1/users/u1/recommendations").headers["etag"]
    views.shown["u1"] = (replace(LIST, count=10), LIST)
    answer = web.get("/v1/users/u1/recommendations", headers={"If-None-Match": tag})
    assert (answer.status_code, answer.json()["count"]) == (200, 10)


@pytest.mark.parametrize("user", HOSTILE)
def test_any_id_comes_through_as_it_is(user):
    views = FixedViews(users={user: STATE}, shown={user: (LIST,)}, made={user: (MADE,)},
                       items={user: replace(ITEM, item_id=user)})
    web = client(views)
    for kind in ("recommendations", "knowledge", "state"):
        answer = web.get(f"/v1/users/{quote(user, safe='')}/{kind}")
        assert (answer.status_code, answer.json()["user_id"]) == (200, user)
    assert web.get(f"/v1/items/{quote(user, safe='')}").json()["item_id"] == user


@pytest.mark.parametrize(("path", "status"), [
    ("/v1/users/nobody/recommendations", 404), ("/v1/users/nobody/state", 404), ("/v1/users/nobody/knowledge", 404),
    ("/v1/items/nothing", 404), ("/v1/users/u1", 404), ("/v1/users//state", 404), ("/v1/users/u1/other", 404),
    ("/v1/items/", 404), ("/v1/nothing", 404), ("/v1/users/%ff/state", 400), ("/v1/items/%ff", 400),
    ("/v1/users/%ed%a0%80/state", 400), (f"/v1/items/{'a' * 5000}", 400)])
def test_errors_are_problems(path, status):
    answer = client().get(path)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert (body["type"], body["status"]) == ("about:blank", status)
    assert body["detail"]


def test_only_reading_is_offered():
    for method in ("post", "put", "delete", "patch"):
        answer = getattr(client(), method)("/v1/users/u1/state")
        assert (answer.status_code, answer.headers["content-type"]) == (405, "application/problem+json")


def test_a_failure_is_a_problem_that_tells_nothing_of_the_machine():
    class Failing(FixedViews):
        def state(self, user_id):
            raise OSError("/secret/path")

    web = TestClient(create_app(Failing(), Settings()), base_url="http://localhost", raise_server_exceptions=False)
    answer = web.get("/v1/users/u1/state")
    assert (answer.status_code, answer.headers["content-type"]) == (500, "application/problem+json")
    assert "secret" not in answer.text


def test_half_a_view_answers_nobody():
    views = FixedViews(caught_up=False, share_read=0.25)
    web = client(views)
    for path in ("/v1/users/u1/state", "/v1/items/other"):
        answer = web.get(path)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
        assert "25%" in answer.json()["detail"]
    health = web.get("/v1/health")
    assert (health.status_code, health.json()) == (503, {"status": "reading", "read": 0.25})
    views.caught_up, views.share_read = True, 1.0
    assert web.get("/v1/users/u1/state").status_code == 200
    health = web.get("/v1/health")
    assert (health.status_code, health.json()) == (200, {"status": "ok", "read": 1.0})


KEYS = {"api_keys": "one, two", "token": "the:token"}


def basic(password: str) -> str:
    return "Basic " + base64.b64encode(f"anyone:{password}".encode()).decode()


@pytest.mark.parametrize("headers", [
    {"Authorization": "Bearer one"}, {"Authorization": "bearer  two"}, {"X-Api-Key": "two"},
    {"Authorization": basic("one")}, {"Authorization": basic("the:token")}])
def test_a_key_opens(headers):
    web = client(**KEYS)
    assert web.get("/v1/users/u1/state", headers=headers).status_code == 200


@pytest.mark.parametrize("headers", [
    {}, {"Authorization": "Bearer"}, {"Authorization": "Bearer three"}, {"Authorization": "one"},
    {"Authorization": "Bearer one, two"}, {"Authorization": "Bearer ONE"}, {"X-Api-Key": ""}, {"X-Api-Key": "on"},
    {"Authorization": "Basic one"}, {"Authorization": "Basic ***"}, {"Authorization": basic("")},
    {"Authorization": "Basic " + base64.b64encode(b"one").decode()}, {"X-Api-Key": b"\xc3\xbc"}])
def test_without_a_key_nothing_is_shown(headers):
    web = client(api_keys="one, two")
    for path in ("/v1/users/u1/state", "/v1/items/i1", "/"):
        answer = web.get(path, headers=headers, follow_redirects=False)
        assert (answer.status_code, answer.headers["content-type"]) == (401, "application/problem+json"), path
        assert answer.headers["www-authenticate"].startswith("Basic ")
    assert web.get("/v1/health", headers=headers).status_code == 200
    assert web.get("/v1/openapi.json", headers=headers).status_code == 200


def test_a_token_alone_asks_nobody_for_a_key():
    assert client(token=KEYS["token"]).get("/v1/users/u1/state").status_code == 200


@pytest.mark.parametrize(("console", "host", "status"), [
    ({}, "localhost:8420", 200), ({}, "127.0.0.1:8420", 200), ({}, "[::1]:8420", 200), ({}, "evil.example", 400),
    ({"host": "192.0.2.1"}, "freshet.internal", 200),
    ({"host": "192.0.2.1", "names": "a.example"}, "freshet.internal", 400),
    ({"names": "a.example, *.b.example"}, "c.b.example", 200), ({"names": "a.example"}, "localhost", 400)])
def test_a_name_that_points_here_from_elsewhere_is_refused(console, host, status):
    assert client(**console).get("/v1/health", headers={"Host": host}).status_code == status


@pytest.mark.parametrize("name", ["a*", "*a.example", "a.*.example"])
def test_a_name_that_is_none_is_an_error_of_one_line(name):
    with pytest.raises(SettingsError, match="FRESHET_CONSOLE_NAMES"):
        client(names=name)


@pytest.mark.parametrize("headers", [
    {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}, {"Origin": "http://evil.example"},
    {"Origin": "null"}, {"Origin": "http://localhost:1"}])
def test_another_sites_page_changes_nothing(headers):
    assert client().post("/anything", headers=headers).status_code == 403


@pytest.mark.parametrize("headers", [{}, {"Sec-Fetch-Site": "same-origin"}, {"Origin": "http://localhost:8420"}])
def test_ones_own_page_is_let_through(headers):
    # 405 and not 403: it came through, to where nothing is posted.
    assert client().post("/anything", headers=headers).status_code == 405


def test_every_answer_forbids_scripts_of_others():
    for path in ("/v1/users/u1/state", "/v1/nothing", "/v1/users/%ff/state", "/v1/openapi.json"):
        headers = client().get(path).headers
        assert "default-src 'self'" in headers["content-security-policy"]
        assert "unsafe-inline" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
