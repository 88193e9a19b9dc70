"""Bring your own language model: any server with OpenAI's chat completions writes what the next fit reads of items.

vLLM, SGLang, llama.cpp, Ollama or a hosted model: all speak this protocol. Answers are kept in the home folder as they
arrive, so a run that ends early goes on where it was, and nothing is paid for twice. `freshet fit` then measures on
held-out events what the texts add and switches them off if that is nothing. (The same from the shell:
`freshet describe --items`. The model that makes *user* knowledge is another setting: `FRESHET_LLM_NAME`.)

    ollama serve
    .venv/bin/python examples/own_llm.py --url http://localhost:11434/v1 --model gemma3 --data my-shop --items 100
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from models.data.loading import load_dataset
from models.data.written import read_written
from schemas.settings import load
from workers.terminal.stages import Stages
from workers.writing import describe
from workers.writing.recorded import Answers


def main() -> None:
    """Ask about the items with most events, and show what was written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True, help="base URL of the server, such as http://localhost:8000/v1")
    parser.add_argument("--model", required=True, help="the server's name of the model")
    parser.add_argument("--data", type=Path, required=True, help="folder of a data set with texts of items")
    parser.add_argument("--items", type=int, default=100, help="ask about at most so many")
    arguments = parser.parse_args()

    settings = load()  # a key comes from FRESHET_WRITER_API_KEY_FILE, limits from FRESHET_WRITER_MOST_COST
    settings = replace(settings, home=settings.home.absolute(), writer=replace(
        settings.writer, provider="server", url=arguments.url, model=arguments.model))
    dataset = load_dataset(arguments.data, settings.events)
    plan = describe.plan_items(dataset, arguments.items)
    with Stages() as stages:
        provider = describe.provider_of(settings, stages)
        missing = plan.missing(Answers(settings.home / describe.KEPT).read(), provider.model)
        for line in describe.estimate(plan, missing, provider):  # how many questions, and the probable cost
            print(line)
        account, stopped = describe.describe(plan, provider, settings.home, stages)
    for line in account.lines(plan.kind, settings.home / describe.PLACE):
        print(line)
    written = read_written(settings.home / describe.PLACE, dataset.items, dataset.texts)
    for item, text in list((written.texts if written else {}).items())[:5]:
        print(f"  {dataset.titles[dataset.items.index(item)] or item}: {text}")
    if stopped is not None:
        raise SystemExit(f"it ended early: {stopped}. The same command goes on.")
    print(f"now: FRESHET_HOME={settings.home} freshet fit --data {arguments.data}")


if __name__ == "__main__":
    main()
