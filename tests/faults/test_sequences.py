"""A few sequences which together inject every kind of fault at least once, on Apache Kafka, judged by the oracle.

Longer, with sequences that Hypothesis draws: `make faults ARGS='--sequences 30'`.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.faults.actions import FIXED, KINDS, kind
from tests.faults.cluster import running
from tests.faults.endurance import Run
from tests.faults.replay import shrink
from tests.faults.run import Runner, table
from tests.workers.brokers import needs_kafka


def test_the_fixed_sequences_plan_every_kind_of_fault():
    planned = Counter(name for sequence in FIXED for action in sequence for name in kind(action))
    assert set(planned) == set(KINDS)


@needs_kafka
@pytest.mark.slow
@pytest.mark.kafka
@pytest.mark.timeout(900)
def test_nothing_is_lost_doubled_or_stuck_whatever_fails(tmp_path: Path):
    with running(tmp_path) as cluster:
        runner = Runner(cluster)
        for sequence in FIXED:
            runner.run(sequence)
        print(table(runner))
        assert not runner.never_fired()
        # Ten times what the cluster can take, for two seconds; `make pressure` does it for five minutes.
        report = Run("pressure", 2.0, None, 0, cluster, users=100, probe=10_000).go()
        print(report)
        assert report["wrong"] == []


def test_a_failing_run_is_shrunk_to_what_makes_it_fail():
    a, b, c = ({"do": name} for name in "abc")
    shortest = shrink([[a, b], [c], [b, c, a]], lambda run: {"do": "c"} in run[-1] and {"do": "a"} in run[0])
    assert shortest in ([[a], [c]], [[c, a]])
