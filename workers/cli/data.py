"""`freshet fit`, `describe` and `demo`: fit models on a data set, have its items described, run the whole system."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from schemas.errors import FreshetError
from schemas.settings import load

DataFolder = Annotated[
    Path | None, typer.Option(help="Folder with events.csv and items.jsonl, the folder of a public data set, or a file "
                                   "of events. [default: download MovieLens-100K]")]


def fit(
    data: DataFolder = None,
    system: Annotated[str, typer.Option(
        help="The system to fit and serve; `freshet evaluate --list` shows all. "
             "[default: the setting fit.system, which is freshet]")] = "",
    encoding: Annotated[str, typer.Option(
        help="Encoding of the files, such as cp1252. [default: the setting events.encoding, else UTF-8]")] = "",
    columns: Annotated[str, typer.Option(
        help="Names of the columns of an events file without a header: user_id,item_id,rating,timestamp.")] = "",
) -> None:
    """Fit the models on the first part of the timeline and calibrate when knowledge is refreshed.

    `events.csv` has the columns user_id, item_id, timestamp and optionally event_type. `items.jsonl` has the fields
    item_id, title and attributes (a list). MovieLens, Amazon reviews, Yelp, RetailRocket and RecBole's atomic files are
    recognised by their files' names; docs/events.md says what else is read. Stages whose data and settings did not
    change are reused from the last fit.

    The fitted model is put into use: `freshet up` serves it, and roles that run load it within seconds. The systems
    `dense` and `generative` have no knowledge about users: they never refresh anything, and serving them needs no
    language model.

    Examples:

    `freshet fit --data my-shop`

    `freshet fit --data my-shop --system lwgr`

    `freshet fit --data Beauty_5.jsonl.gz`
    """
    from models.systems.table import served_system
    from schemas.artifacts import Registry
    from workers.data import movielens
    from workers.terminal.stages import Stages
    from workers.training.fit import run, still_improving

    settings = load()
    if system:
        settings = replace(settings, fit=replace(settings.fit, system=system))
    if encoding or columns:
        settings = replace(settings, events=replace(
            settings.events, encoding=encoding or settings.events.encoding, columns=columns or settings.events.columns))
    served_system(settings.fit.system)  # fail on a wrong name before anything is downloaded
    folder = data or movielens.fetch(settings.home, typer.echo)
    with Stages() as stages:
        artifact = run(settings, folder, stages)
    typer.echo(f"fitted {artifact.model_version} in {artifact.folder}")
    if cut := still_improving(artifact.card):
        typer.echo(f"scorers still improving in the last of {settings.fit.epochs} epochs: {', '.join(cut)}. Set "
                   f"FRESHET_FIT_EPOCHS={4 * settings.fit.epochs} to train until held-out events stop improving")
    if Registry(settings.home).current() == artifact.model_version:
        typer.echo("it is in use: `freshet up` starts with it, roles that run load it within seconds")


def describe(
    items: Annotated[bool, typer.Option("--items", help="Describe the catalogue's items.")] = False,
    users: Annotated[bool, typer.Option("--users", help="Write what each user is likely to want next.")] = False,
    data: DataFolder = None,
    limit: Annotated[int, typer.Option(
        min=0, help="Describe at most so many: items with most events, or users with the newest events. 0 = all.")] = 0,
    until: Annotated[datetime | None, typer.Option(
        help="With --users: read only events before this time (UTC). [default: all events]")] = None,
    dry_run: Annotated[bool, typer.Option(
        "--dry-run", help="Show what would be asked and its cost; ask nothing.")] = False,
) -> None:
    """Have a language model write about items or users, and keep what it wrote for the next `freshet fit`.

    FRESHET_WRITER_PROVIDER says who writes: `local` (the language model of FRESHET_LLM_NAME on this machine), `server`
    (any OpenAI-compatible server: vLLM, SGLang, llama.cpp, Ollama, or a hosted one) or `recorded` (answers from a
    file). Only language models that know something about your items are worth their calls; `freshet fit` measures on
    held-out events what the texts add, and says so. docs/knowledge.md shows how to connect a server.

    Before it starts, the number of questions and the probable cost are shown. Answers are kept as they arrive in
    knowledge/answers.jsonl under the home folder: after Ctrl-C, a kill or the spending limit, the same command goes on
    where it was, and what is answered is never asked again. The texts are in knowledge/items.jsonl and users.jsonl.

    Exit codes: 0 all questions were asked; 3 stopped at the spending limit (FRESHET_WRITER_MOST_TOKENS and _MOST_COST);
    1 another error.

    Examples:

    `freshet describe --items --dry-run`

    `FRESHET_WRITER_PROVIDER=server FRESHET_WRITER_URL=http://localhost:8000/v1 FRESHET_WRITER_MODEL=NAME freshet
    describe --items --data my-shop`
    """
    from models.data.loading import load_dataset
    from workers.data import movielens
    from workers.terminal.stages import Stages
    from workers.writing import describe as job
    from workers.writing.provider import SpendingLimitError
    from workers.writing.recorded import Answers

    if items == users:
        raise FreshetError("say what to describe: --items or --users")
    settings = load()
    home = settings.home.absolute()
    dataset = load_dataset(data or movielens.fetch(settings.home, typer.echo), settings.events)
    before = None if until is None else until.replace(tzinfo=until.tzinfo or UTC).timestamp()
    plan = job.plan_items(dataset, limit) if items else job.plan_users(dataset, limit, before)
    with Stages() as stages:
        provider = job.provider_of(settings, stages)
        missing = plan.missing(Answers(home / job.KEPT).read(), provider.model)
        for line in job.estimate(plan, missing, provider):
            stages.say(line)
        if dry_run:
            return
        account, stopped = job.describe(plan, provider, home, stages)
        for line in account.lines(plan.kind, home / (job.PLACE if items else job.USERS)):
            stages.say(line)
    if isinstance(stopped, SpendingLimitError):
        typer.secho(f"freshet: {stopped}", fg=typer.colors.YELLOW, err=True)
        raise typer.Exit(3)
    if stopped is not None:
        raise stopped


def demo(
    data: DataFolder = None,
    speed: Annotated[float, typer.Option(
        help="Speed-up: seconds of event time per second. 0 = as fast as answers arrive.")] = 0.0,
    events: Annotated[int, typer.Option(help="Number of events to send after the training part. 0 = all.")] = 0,
    window: Annotated[int, typer.Option(
        help="Maximum number of events waiting for an answer. 0 = 256, fewer in a short run.")] = 0,
    per_user: Annotated[int | None, typer.Option(
        help="Maximum number of events of one user waiting for an answer. A small number makes sure that each event is "
             "judged by a recommendation that includes the user's earlier events; other users' events may overtake. "
             "0 = no limit, exact time order. [default: 2 with --speed 0, else 0]"
    )] = None,
    out: Annotated[Path, typer.Option(help="Parent folder for the report.")] = Path("runs"),
) -> None:
    """Run the whole system on this machine and write a report: fit, start, stream events, recommend.

    Models are fitted on the first part of the timeline. The rest is sent as events: in time order per user, and in
    exact time order with --speed. Each event is compared with what was recommended to its user before it. The results
    are in runs/TIME/report.html and report.json. Ctrl-C stops the demo cleanly and still writes the report.

    Examples:

    `freshet demo --events 2000`

    `freshet demo --data my-shop --speed 3600`
    """
    from workers.demo.run import Demo

    limit = per_user if per_user is not None else 0 if speed else 2
    Demo(load(), data, speed=speed, events=events, window=window, per_user=limit, out=out).run()
