"""The views of one process put together: what pages get. Without a broker, a store or a running stack."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from schemas.settings import Settings
from tests.workers.fitted import publish, settings_in
from tests.workers.views.reading.sent import (
    T0,
    changed,
    item,
    judgement,
    letter,
    recommendation,
    record,
    request,
    state,
    update,
)
from workers.views.reading.catalogue import ShownItems
from workers.views.reading.folding import ViewsFold
from workers.views.reading.local import LocalViews
from workers.views.reading.recent import Recent
from workers.views.reading.reports import models, settings_in_use
from workers.views.reading.status import Status
from workers.views.reading.stored import Stored
from workers.views.reading.tables import Tables


class Held:
    """Views, and what fills them."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.tables, self.recent = Tables(folder), Recent()
        self.fold = ViewsFold(self.tables, self.recent)
        self.items = ShownItems(settings.home, self.tables)
        self.items.follow()
        self.views = LocalViews(
            settings, self.tables, self.recent, self.fold, self.items, Status(settings), Stored(settings, self.items),
            caught_up=lambda: True, share_read=lambda: 1.0, behind=lambda: 3, read=lambda: 5)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    publish(settings_in(home), "v1")
    return home


@pytest.fixture
def held(home: Path, tmp_path: Path) -> Iterator[Held]:
    made = Held(replace(settings_in(home)), tmp_path / "console")
    yield made
    made.tables.close()


def test_a_user_has_everything_that_topics_say(held):
    held.fold.fold([
        record(recommendation(items=("i1", "i2"))), record(recommendation(items=("i2", "i3"), version=1)),
        record(request()), record(update()), record(judgement("u1", 2, 3)), changed("u1", state("i1", cusum=0.5)),
        changed("u1", state("i1", "i2", cusum=1.0)), record(letter(1)),
        record(letter(2, key=base64.b64encode(b"other").decode()))])
    page = held.views.user("u1")
    assert [(one.item_id, one.title) for one in page.lists[0].items] == [("i2", "2 things"), ("i3", "3 things")]
    assert [one.version for one in page.refreshes] == [1]
    assert [one.item_id for one in page.refreshes[0].gained] == ["i3"]
    assert page.state is not None
    assert (page.state.count, page.state.drift.threshold, page.state.trust.bound) == (2, 5.0, 2.0)
    assert [one.count for one in page.margins] == [3, 2]
    assert [(one.count, one.drift) for one in page.steps] == [(1, 0.5), (2, 1.0)]
    assert [one.offset for one in page.letters] == [1]
    assert page.stored is None
    assert "FRESHET_QDRANT_URL" in page.store_problem


def test_a_user_who_is_not_known_is_an_empty_page(held):
    page = held.views.user("nobody")
    assert (page.state, page.lists, page.refreshes, page.margins, page.letters, page.steps) == (
        None, (), (), (), (), ())


def test_a_state_of_a_newer_release_is_not_shown(held):
    held.fold.fold([changed("u1", state("i1", layout=99))])
    assert held.views.state("u1") is None
    assert held.views.user("u1").state is None


def test_an_item_is_what_version_topic_and_events_say(held):
    held.fold.fold([record(item("i3", title="Renamed", attributes={"brand": "x"}, available=False)),
                    record(item("new", title="New thing", text="long")), changed("u1", state("seen only"))])
    known, new, only = (held.views.item(name) for name in ("i3", "new", "seen only"))
    assert (known.known, known.title, known.attributes) == (
        True, "Renamed", {"brand": "x", "available": False, "text": "3 things"})
    assert known.by_behaviour
    assert (new.known, new.title, new.attributes["text"], new.by_behaviour) == (True, "New thing", "long", ())
    assert (only.known, only.title, [one.user_id for one in only.takers]) == (True, "", ["u1"])
    assert not held.views.item("nothing").known


def test_what_a_text_names_is_found(held):
    held.fold.fold([changed("i3", state("i1")), record(recommendation("only a list"))])
    found = held.views.search("i3")
    assert (found.users, [one.item_id for one in found.items]) == (("i3",), ["i3"])
    assert held.views.search("only a list").users == ("only a list",)
    assert held.views.search("things 29").items[0].item_id == "i29"
    assert (held.views.search("nobody").users, held.views.search("nobody").items) == ((), ())


def test_dead_letters_are_grouped_and_whole_on_demand(held):
    value = b"\x00" + b"x" * 5000
    sent = [record(letter(n, reason=f"byte {n} is no JSON", value=base64.b64encode(value).decode(),
                          headers=[("h", base64.b64encode(b"1").decode())])) for n in range(30)]
    held.fold.fold([*sent, record(letter(99, topic="elsewhere", reason="what is this"))])
    found = held.views.dead_letters()
    assert (found.total, found.held, [one.count for one in found.groups]) == (31, 31, [30, 1])
    most = found.groups[0]
    assert (most.topic, most.replayable, len(most.newest)) == ("behaviour-events", 30, 20)
    assert most.newest[0].number == sent[-1].offset
    assert len(most.newest[0].value) < len(value)
    assert found.groups[1].replayable == 0
    whole = held.views.dead_letter(sent[0].offset)
    assert whole is not None
    assert (whole.value, whole.key, whole.headers) == (value, b"u1", (("h", b"1"),))
    assert [held.views.dead_letter(number) for number in (-1, 10**9, 2**70)] == [None] * 3


def test_the_overview_holds_without_a_stack(held):
    now = time.time()
    held.fold.fold([record(update(), at=now), record(recommendation(version=1), at=now), record(letter(), at=now),
                    changed("u1", state("i1"), at=now)])
    found = held.views.overview()
    assert (found.users, found.read, found.behind, found.model_version) == (1, 5, 3, "v1")
    assert (found.minutes[-1].letters or found.minutes[-2].letters) == 1
    assert found.knowledge_freshness.p50 == 4.0
    assert [one.user_id for one in found.recent] == ["u1"]
    assert [one.section for one in found.problems] == ["Dead letters come in"]
    assert (found.roles, found.llm_cost) == ((), None)
    assert held.views.overview() is found  # at most once a second


def test_models_are_those_of_the_registry(home, tmp_path):
    found = models(home)
    assert (found.in_use, found.problem) == ("v1", "")
    assert [(one.version, one.state, one.system) for one in found.rows] == [("v1", "in_use", "freshet")]
    assert models(tmp_path).problem


def test_settings_say_where_they_come_from(tmp_path):
    config, secret = tmp_path / "freshet.toml", tmp_path / "key"
    config.write_text("[ranking]\ntop = 7\n")
    settings = replace(
        Settings(), ranking=replace(Settings().ranking, top=7), kafka=replace(Settings().kafka, port=9),
        qdrant=replace(Settings().qdrant, api_key="hunter2"), console=replace(Settings().console, token="t0ken"))  # noqa: S106
    found = {one.variable: one for one in settings_in_use(settings, {
        "FRESHET_CONFIG": str(config), "FRESHET_KAFKA_PORT": "9", "FRESHET_QDRANT_API_KEY_FILE": str(secret)})}
    assert {name: (found[name].value, found[name].source) for name in (
        "FRESHET_RANKING_TOP", "FRESHET_KAFKA_PORT", "FRESHET_QDRANT_API_KEY", "FRESHET_LLM_BATCH")} == {
        "FRESHET_RANKING_TOP": ("7", "file"), "FRESHET_KAFKA_PORT": ("9", "variable"),
        "FRESHET_QDRANT_API_KEY": ("set", "secret file"), "FRESHET_LLM_BATCH": ("16", "default")}
    assert not any("hunter2" in str(one) or "t0ken" in str(one) for one in found.values())


def test_no_experiment_is_no_problem(held):
    found = held.views.experiments()
    assert (found.name, found.figures, found.problem) == ("", None, "")


def test_times_are_the_brokers(held):
    held.fold.fold([record(recommendation(), at=T0 + 7), changed("u1", state("i1"), at=T0 + 8)])
    assert held.views.lists("u1")[0].read_at == T0 + 7
    assert held.views.state("u1").updated_at == T0 + 8
