"""Runs sequences of actions on a cluster and judges them with the oracle.

`python -m tests.faults.run --sequences 20 --seed 1` draws sequences with Hypothesis until one fails or all passed. One
cluster lives through all of them. What fails is written to a file, with everything that came before it on the same
cluster, for `python -m tests.faults.replay FILE`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import orjson
from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.faults.actions import FIXED, KINDS, SEQUENCES, Action, Actor, kind, perform
from tests.faults.cluster import Cluster
from tests.faults.oracle import repeated, violations

FAILED = Path("runs/faults")


class OracleError(AssertionError):
    """A sequence after which something is wrong; the text says what, and how to see it again."""


@dataclass
class Runner:
    """Runs sequences on one cluster.

    Args:
        say: gets a line per action.
    """

    cluster: Cluster
    seed: int = 0
    say: Callable[[str], None] = print
    done: list[list[Action]] = field(default_factory=list)
    planned: Counter[str] = field(default_factory=Counter)
    fired: Counter[str] = field(default_factory=Counter)
    recovery_s: dict[str, list[float]] = field(default_factory=dict)

    def run(self, sequence: Sequence[Action]) -> None:
        """Run one sequence and check everything after it.

        Raises:
            OracleError: something is lost, doubled, older than before, or never comes.
        """
        self.done.append(list(sequence))
        try:
            for action in sequence:
                self.planned.update(kind(action))
                started = time.monotonic()
                perform(action, self.cluster, self.fired)
                self.say(f"  {time.monotonic() - started:5.1f} s  {orjson.dumps(action).decode()}")
            seconds = Actor(self.cluster).settle()
            for name in {name for action in sequence for name in kind(action)}:
                self.recovery_s.setdefault(name, []).append(seconds)
            wrong = self.cluster.faults + violations(
                self.cluster.book, self.cluster.ledger, self.cluster.held, switched=self.cluster.switched > 0)
        except AssertionError as error:
            raise self._failed([str(error)]) from error
        if wrong:
            raise self._failed(wrong)
        self.say(f"  {seconds:5.1f} s  until all was done: nothing lost, {repeated(self.cluster.ledger)} events "
                 "delivered again since the start")

    def never_fired(self) -> list[str]:
        """Return the kinds of faults that were planned but never happened."""
        return [name for name in KINDS if self.planned[name] and not self.fired[name]]

    def _failed(self, wrong: Sequence[str]) -> OracleError:
        folder = FAILED / time.strftime("%Y%m%d-%H%M%S")
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "sequences.json"
        path.write_bytes(orjson.dumps({"seed": self.seed, "sequences": self.done}, option=orjson.OPT_INDENT_2))
        (folder / "wrong.txt").write_text("\n".join(wrong))
        self.cluster.keep_logs(folder)
        lines = "\n".join(wrong)
        return OracleError(f"{lines}\nsequences: {orjson.dumps(self.done).decode()}\n"
                           f"see it again: python -m tests.faults.replay {path}   (logs beside it)")


def drive(runner: Runner, sequences: int, number: int) -> None:
    """Draw sequences and run them. Hypothesis draws; it does not shrink, since a cluster remembers what came before."""
    @seed(number)
    @settings(max_examples=sequences, database=None, deadline=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck), print_blob=False)
    @given(SEQUENCES)
    def one(sequence: list[Action]) -> None:
        runner.say(f"sequence {len(runner.done) + 1} of {sequences}")
        runner.run(sequence)

    one()


def table(runner: Runner) -> str:
    """Return a table of the faults: how often injected, and how long until all was done."""
    lines = ["| fault | injected | seconds until all was done, longest |", "|---|--:|--:|"]
    lines += [f"| {name} | {runner.fired[name]} | {max(runner.recovery_s.get(name, [0.0])):.0f} |"
              for name in KINDS if runner.planned[name]]
    return "\n".join([*lines, f"events: {sum(map(len, runner.cluster.book.acked.values()))}, lost: 0, delivered again: "
                      f"{repeated(runner.cluster.ledger)}"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sequences", type=int, default=10)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--fixed", nargs="*", type=int, help="the fixed sequences of the tests, or some by number")
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    with (tempfile.TemporaryDirectory(prefix="freshet-faults-") as folder,
          Cluster(Path(folder), seed=arguments.seed) as cluster):
        runner = Runner(cluster, arguments.seed, lambda line: print(line, flush=True))
        try:
            if arguments.fixed is None:
                drive(runner, arguments.sequences, arguments.seed)
            else:
                for number in arguments.fixed or range(len(FIXED)):
                    runner.run(FIXED[number])
        except OracleError as error:
            print(error)
            return 1
        print(table(runner))
        if missing := runner.never_fired():
            print(f"planned, but never happened: {', '.join(missing)}")
        return bool(missing)


if __name__ == "__main__":
    sys.exit(main())
