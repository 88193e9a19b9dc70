"""The pages in a real browser: hostile texts run nothing, the overview updates itself, the keyboard is enough."""

from __future__ import annotations

import asyncio
import base64
import re
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import pytest
import uvicorn

from schemas.settings import ConsoleSettings, Settings
from tests.browser import Tab, browser, needs_chromium
from tests.workers.brokers import kill_broker
from tests.workers.console.filled import HOSTILE, FilledViews, filled
from tests.workers.console.test_pages import paths
from tests.workers.console.test_role import Running
from tests.workers.views.reading.sent import (
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
from workers.console.server import create_app
from workers.supervision.broker import free_port

pytestmark = [pytest.mark.slow, needs_chromium]
_WIDTHS = (1280, 800, 390)
_STUCK = ("[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth && e.tabIndex < 0"
          " && !e.querySelector('a, input, button')).length")


class Server:
    """The console in a thread; `views` are what it shows."""

    def __init__(self, views: FilledViews) -> None:
        self.views = views
        port = free_port()
        app = create_app(views, replace(Settings(), console=ConsoleSettings(token="t0ken")))  # noqa: S106
        self.url = f"http://127.0.0.1:{port}"
        self._server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error", lifespan="off"))
        self._thread = threading.Thread(target=self._server.run)

    def __enter__(self) -> Server:
        self._thread.start()
        deadline = time.monotonic() + 30.0
        while not self._server.started:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(30.0)


@pytest.fixture
def plain() -> Iterator[Server]:
    with Server(filled(now=time.time())) as server:
        yield server


@pytest.fixture
def hostile() -> Iterator[Server]:
    with Server(filled(hostile=True, now=time.time())) as server:
        yield server


def drive(steps: Callable[[Tab], Awaitable[None]]) -> None:
    async def all_of() -> None:
        async with browser() as tab:
            await steps(tab)

    asyncio.run(all_of())


def test_hostile_ids_and_titles_run_nothing_load_nothing_and_break_no_page(hostile: Server):
    async def steps(tab: Tab) -> None:
        searches = [f"/search?q={quote(text, safe='')}" for text in HOSTILE]
        for path in [*paths(hostile.views), *searches]:
            await tab.open(hostile.url + path)
            title = await tab.look("document.title")
            assert title.endswith("· Freshet"), (path, title)
            assert await tab.look("document.querySelectorAll('img, script:not([src]), main svg [onload]').length") == 0
            for width in _WIDTHS:
                await tab.size(width, 900)
                assert await tab.look("document.documentElement.scrollWidth <= innerWidth"), (path, width)
                assert await tab.look(_STUCK) == 0, f"{path} scrolls sideways where no key reaches"
        assert (tab.complaints, tab.dialogs) == ([], [])
        assert {url.split("/")[2] for url in tab.requests} == {hostile.url.split("/")[2]}

    drive(steps)


def test_the_overview_updates_itself_and_keeps_the_focus(plain: Server):
    async def steps(tab: Tab) -> None:
        await tab.open(plain.url + "/")
        assert await tab.look("document.querySelector('#live').innerText.includes('18,231 users')")
        assert await tab.look("{const a = document.querySelector('#live a'); a.focus(); a === document.activeElement}")
        glance = plain.views.at_a_glance
        assert glance is not None
        plain.views.at_a_glance = replace(glance, users=18_232, problems=())
        await tab.until("document.querySelector('#live').innerText.includes('18,232 users')")
        await tab.until("document.querySelector('#live').innerText.includes('Nothing is wrong')")
        assert await tab.look("document.activeElement.closest('#live') !== null"), "the update took the focus away"
        assert tab.complaints == []

    drive(steps)


def test_an_update_that_fails_changes_nothing_and_the_next_one_counts(plain: Server):
    async def steps(tab: Tab) -> None:
        await tab.open(plain.url + "/")
        glance = plain.views.at_a_glance
        assert glance is not None
        plain.views.at_a_glance = replace(glance, minutes=None)  # type: ignore[arg-type] # the template fails on it
        async with asyncio.timeout(30):
            while not any("500" in complaint for complaint in tab.complaints):
                await asyncio.sleep(0.1)
        await asyncio.sleep(0.5)  # what came with it would be there by now
        assert await tab.look("document.querySelector('#live').innerText.includes('18,231 users')")
        plain.views.at_a_glance = replace(glance, users=18_233)
        await tab.until("document.querySelector('#live').innerText.includes('18,233 users')")

    drive(steps)


def test_the_keyboard_reaches_the_content_and_finds_a_user(plain: Server):
    async def steps(tab: Tab) -> None:
        await tab.open(plain.url + "/models")
        await tab.press("Tab", 9)
        assert await tab.look("document.activeElement.className") == "skip"
        await tab.look("document.querySelector('input[type=search]').focus()")
        await tab.call("Input.insertText", text="412")
        await tab.call("Input.dispatchKeyEvent", type="keyDown", key="Enter", code="Enter", text="\r",
                       windowsVirtualKeyCode=13)
        await tab.until("document.querySelector('h1')?.innerText === 'User 412'")

    drive(steps)


def test_light_and_dark_follow_the_system(plain: Server):
    async def steps(tab: Tab) -> None:
        seen = {}
        for scheme in ("light", "dark"):
            await tab.prefer(scheme)
            await tab.open(plain.url + "/user?id=412")
            seen[scheme] = await tab.look("getComputedStyle(document.documentElement).backgroundColor")
            line = await tab.look("getComputedStyle(document.querySelector('svg.history .line')).stroke")
            assert line not in ("none", seen[scheme])
        assert seen["light"] != seen["dark"]

    drive(steps)


@pytest.mark.timeout(240)
def test_the_role_shows_what_the_topics_hold_and_follows_them(tmp_path: Path):
    """The process `freshet up` starts, on a broker: hostile records in, pages out."""
    running = Running("embedded", tmp_path)
    try:
        for number, user in enumerate(HOSTILE):
            other = HOSTILE[number - 1]
            running.send(
                record(item(user, title=other, attributes=[user])),
                changed(user, state(user, other, "i1", cusum=2.0, knowledge_version=1, knowledge_count=2)),
                record(recommendation(user, items=(user, other, "i1"), version=1, arm="treatment", experiment="e")),
                record(request(user)), record(update(user)), record(judgement(user, 2, 3)),
                record(letter(number, reason=user, value=base64.b64encode(user.encode()).decode(), key=None)))
        running.start()
        running.wait(lambda: running.status() == 200)
        url = f"http://127.0.0.1:{running.port}"

        async def steps(tab: Tab) -> None:
            for user in HOSTILE:
                await tab.open(f"{url}/user?id={quote(user, safe='')}")
                shown = await tab.look("document.querySelector('h1 bdi').textContent")
                assert re.sub(r"[\r\n\0]", "", shown) == re.sub(r"[\r\n\0]", "", user)
                await tab.until("document.querySelector('svg.history') !== null")
                await tab.open(f"{url}/item?id={quote(user, safe='')}")
                assert await tab.look("document.querySelectorAll('main section').length") >= 3
            for path in ("/", "/dead-letters", "/models", "/experiments", "/settings"):
                await tab.open(url + path)
                assert (await tab.look("document.title")).endswith("· Freshet"), path
            await tab.open(url + "/")
            users = f"document.querySelector('#live').innerText.includes('{len(HOSTILE) + 1} users')"
            assert not await tab.look(users)
            running.send(changed("newcomer", state("i1")))
            await tab.until(users)
            assert (tab.complaints, tab.dialogs) == ([], [])

        drive(steps)
        assert running.end() == 0
    finally:
        if running.process is not None:
            running.process.kill()
        kill_broker(running.broker)
