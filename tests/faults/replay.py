"""Runs the sequences of a file again on a new cluster: `python -m tests.faults.replay FILE`.

With `--shrink` it leaves out actions, one sequence or action at a time, as long as the rest still fails, and writes the
shortest to FILE.shrunk. Every try starts a cluster, so it takes minutes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import orjson

from tests.faults.actions import Action
from tests.faults.cluster import Cluster
from tests.faults.run import OracleError, Runner


def fails(sequences: list[list[Action]], seed: int) -> str:
    """Run sequences on a new cluster; return what is wrong, "" if nothing."""
    with tempfile.TemporaryDirectory(prefix="freshet-faults-") as folder, Cluster(Path(folder), seed=seed) as cluster:
        runner = Runner(cluster, seed, lambda line: print(line, flush=True))
        try:
            for sequence in sequences:
                runner.run(sequence)
        except OracleError as error:
            return str(error)
    return ""


def shrink(sequences: list[list[Action]], still_fails: Callable[[list[list[Action]]], bool]) -> list[list[Action]]:
    """Return `sequences` without the actions that can go while it still fails, latest first."""
    for at in range(len(sequences) - 1, -1, -1):
        without = sequences[:at] + sequences[at + 1:]
        if without and still_fails(without):
            sequences = without
            continue
        for number in range(len(sequences[at]) - 1, -1, -1):
            shorter = sequences[at][:number] + sequences[at][number + 1:]
            without = [*sequences[:at], shorter, *sequences[at + 1:]]
            if shorter and still_fails(without):
                sequences = without
    return sequences


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--shrink", action="store_true")
    arguments = parser.parse_args()
    kept = orjson.loads(arguments.file.read_bytes())
    wrong = fails(kept["sequences"], kept["seed"])
    print(wrong or "all is well this time")
    if wrong and arguments.shrink:
        shortest = shrink(kept["sequences"], lambda sequences: bool(fails(sequences, kept["seed"])))
        path = arguments.file.with_suffix(".shrunk")
        path.write_bytes(orjson.dumps({"seed": kept["seed"], "sequences": shortest}, option=orjson.OPT_INDENT_2))
        print(f"shortest: {path}")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
