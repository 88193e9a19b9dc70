"""`freshet user` shows what Freshet knows about a user and explains the last list; `freshet forget` erases the user."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated

import orjson
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from schemas.codec import decode
from schemas.errors import PoisonError
from schemas.messages import KnowledgeRequest, KnowledgeUpdate, RankingRequest, Recommendation, Source
from schemas.settings import Settings, load
from schemas.topics import KNOWLEDGE_REQUESTS, KNOWLEDGE_UPDATES, RANKING_REQUESTS, RECOMMENDATIONS, TOPICS
from workers.cli.dead_letters import plain
from workers.home.titles import Titles
from workers.measurement.dead_letters import of_user
from workers.terminal.durations import ago


def user(
    user_id: Annotated[str, typer.Argument(metavar="ID", help="The user_id as it appears in events.")],
    last: Annotated[int, typer.Option(help="Search this many of the newest records per topic.")] = 100_000,
) -> None:
    """Show a user's state, their knowledge, and their last recommendation with its reason; also their dead letters.

    Example: `freshet user 42`; an id that is an option, too: `freshet user -- --last`
    """
    from workers.catalogue.titles import known_titles
    from workers.home.stack_info import connected
    from workers.kafka.reader import read_all
    from workers.operating.letters import read_letters

    settings = connected(load())
    names = [topic.name for topic in (RANKING_REQUESTS, KNOWLEDGE_REQUESTS, KNOWLEDGE_UPDATES, RECOMMENDATIONS)]
    newest = {}
    for message in read_all(settings.kafka, names, key=user_id.encode(), last=last):
        if message.key() == user_id.encode():
            newest[settings.kafka.plain(message.topic())] = message.value()
    found = {}
    for name, value in newest.items():
        if value is None:  # the user was erased
            continue
        try:
            found[name] = decode(TOPICS[name].model, value)
        except PoisonError:
            continue
    now = time.time()
    titles = known_titles(settings, last)
    console = Console(highlight=False)
    console.print(f"[bold]user {_shown(user_id)}[/bold]")
    _state(console, found.get(RANKING_REQUESTS.name), titles, now)  # type: ignore[arg-type]
    _knowledge(console, settings, user_id, found.get(KNOWLEDGE_REQUESTS.name),  # type: ignore[arg-type]
               found.get(KNOWLEDGE_UPDATES.name), now)  # type: ignore[arg-type]
    _recommendation(console, found.get(RECOMMENDATIONS.name), titles, now)  # type: ignore[arg-type]
    letters = of_user(read_letters(settings.kafka, 10_000), user_id)
    if letters:
        console.print(f"[yellow]dead letters: {len(letters):,} of this user's records could not be used, the last one "
                      f"{ago(now, letters[-1].failed_at)}:[/yellow] {_shown(letters[-1].reason)}")
    if not found:
        if not letters:
            console.print("Nothing is known about this user. Either no event arrived since the broker started, only "
                          "history was sent (--backfill), or the id is wrong.")
        raise typer.Exit(1)


def forget(
    user_id: Annotated[str, typer.Argument(metavar="ID", help="The user_id as it appears in events.")],
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait for the roles.")] = 60.0,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Erase a user: state, knowledge, requests, recommendations, caches; report what retention still holds until when.

    The erasure is a message on the topic `erasures`, done by the running roles; this command waits for them. Events
    that come later start a new user. Erasing twice is harmless: the second time nothing is found. docs/erasure.md says
    what is removed and what is not.

    Exit codes: 0 it is done; 1 a role has not done its part yet, or there is an error.

    Examples:

    `freshet forget 42`

    `freshet forget 42 --json > erased.json`; an id that is an option, too: `freshet forget -- --wait`
    """
    from workers.home.stack_info import connected
    from workers.operating.forgetting import forget as erase
    from workers.operating.forgetting import lines_of

    report = erase(connected(load()), user_id, wait)
    if json:
        sys.stdout.write(orjson.dumps(asdict(report), option=orjson.OPT_INDENT_2).decode() + "\n")
    else:
        for line in lines_of(report, lambda at: f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M} UTC"):
            typer.echo(line)
    if report.late:
        raise typer.Exit(1)


def _state(console: Console, state: RankingRequest | None, titles: Titles, now: float) -> None:
    if state is None:
        return
    console.print(
        f"state: {state.count:,} events, {len(state.history)} kept, {len(state.seen)} further items excluded from "
        f"recommendations, trust {state.trust:.2f}, updated {ago(now, state.requested_at)}\n"
        f"  newest items, the last one first: {_shown(titles.names(reversed(state.history[-8:])))}")


def _knowledge(console: Console, settings: Settings, user_id: str, request: KnowledgeRequest | None,
               update: KnowledgeUpdate | None, now: float) -> None:
    if update is None:
        console.print("knowledge: none yet")
    else:
        console.print(
            f"knowledge: version {update.version} by model {update.model_version}, generated "
            f"{ago(now, update.generated_at)} because of {update.reason}, includes {update.count:,} events")
    if request is not None and (update is None or request.version > update.version):
        console.print(f"  requested: version {request.version} because of {request.reason}, "
                      f"{ago(now, request.requested_at)}")
    if settings.qdrant.url:
        console.print("  in the store: " + _stored(settings, user_id, now))


def _stored(settings: Settings, user_id: str, now: float) -> str:
    from schemas.errors import StoreUnavailableError
    from workers.store.qdrant import QdrantStore

    store = QdrantStore.at(settings, settings.fit.dim)
    try:
        point = store.read([user_id]).get(user_id)
    except StoreUnavailableError as error:
        return f"the store does not answer ({error})"
    finally:
        store.close()
    if point is None:
        return "nothing"
    vectors, width = point.vectors.shape
    return f"version {point.version}, {vectors} vectors of {width}, {ago(now, point.generated_at)}"


_STANDS_ON: dict[Source, str] = {
    "fused": "behaviour and knowledge", "items": "behaviour and item knowledge", "reference": "behaviour only",
    "popular": "what others take now"}


def _recommendation(console: Console, last: Recommendation | None, titles: Titles, now: float) -> None:
    if last is None:
        return
    used = f"knowledge version {last.knowledge_version}, {last.knowledge_behind} events behind, μ {last.lagrange:.3g}" \
        if last.source == "fused" and last.lagrange is not None else f"{_STANDS_ON[last.source]} ({last.fallback})"
    why = "the user is here" if last.reason == "seen" else f"of a new {last.reason}"
    console.print(
        f"last recommendation: {ago(now, last.ranked_at)}, because {why}, includes {last.count:,} events; {used}\n"
        f"  {bound(last.epsilon)}")
    if last.rules:
        console.print(f"  changed by rules of the shop: {_shown(', '.join(last.rules))}")
    console.print(lists(last, titles))
    for item, text in last.written.items():
        console.print(f"  {_shown(titles.name(item))}: {_shown(text)}")


def bound(epsilon: float) -> str:
    """Return what a trust radius guarantees, in words."""
    from models.measuring.harm import DELTA

    if epsilon <= 0:
        return "trust radius 0: the list of behaviour alone"
    outside = f", outside a set of items with a probability of {epsilon - DELTA:.3g}" if epsilon > DELTA else ""
    return (f"trust radius {epsilon:.3g}: no item is less likely than by behaviour alone by more than "
            f"{min(epsilon, DELTA):.3g} nats{outside}")


def lists(last: Recommendation, titles: Titles) -> Table:
    """Return the list that was shown beside the one of behaviour alone; what knowledge brought in is marked with +."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("", "shown", "behaviour alone"):
        table.add_column(column)
    shown = [item.item_id for item in last.items]
    for place in range(max(len(shown), len(last.reference))):
        mine, other = (names[place] if place < len(names) else None for names in (shown, last.reference))
        table.add_row(
            f"{place + 1:>4}",
            "" if mine is None else f"{' ' if mine in last.reference else '+'} {_shown(titles.name(mine))}",
            "" if other is None else _shown(titles.name(other)))
    return table


def _shown(text: str) -> str:
    """Return text of others, such as ids, that neither rich nor a terminal obeys."""
    return escape(plain(text, 2000))
