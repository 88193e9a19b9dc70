from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from benchmarks.alignment.run import find_contradictions, groups, mirrored
from models.aligning.align import TRAINING
from models.aligning.cohort import Cohort, Margins, cohort_of
from models.language import adapters
from tests.models import tiny


def cohort(users: int = 40, each: int = 30, span: int = 12) -> Cohort:
    """Return users with `each` events and a snapshot every `span` events."""
    rng = np.random.default_rng(0)
    first = cohort_of([rng.integers(0, 9, each).tolist() for _ in range(users)], [1] * users, span)
    rows = np.concatenate([np.arange(row, row - 1 + each, span) for row in first.rows])
    return Cohort(first.sequences, rows, span)


def judged(over: Cohort, bad: set[int]) -> Margins:
    """Return margins of ±1: −1 for all events of users in `bad`."""
    stop = np.minimum(over.rows + over.span, over.sequences.offsets[over.users + 1])
    snapshot = np.repeat(np.arange(len(over)), stop - over.rows)
    user = over.users[snapshot]
    value = np.where(np.isin(user, list(bad)), -1.0, 1.0)
    return Margins(snapshot, user, value, -value)


def test_find_contradictions_finds_each_harmed_user_once() -> None:
    users = cohort()
    verdicts = find_contradictions(users, judged(users, set(range(20))), bound=1.0, alpha=0.05)
    assert users.users[verdicts.wrong].tolist() == list(range(20))
    assert set(verdicts.crossed.tolist()) == {9}  # ten events with margin −1
    assert users.users[verdicts.calm].tolist() == list(range(20, 40))


def test_training_and_evaluation_users_are_disjoint_and_evaluation_uses_later_events() -> None:
    everyone = cohort()
    verdicts = find_contradictions(everyone, judged(everyone, set(range(20))), bound=1.0, alpha=0.05)
    split, contradicting = groups(everyone, verdicts, 0.5, 100, seed=1)
    training, evaluation = (set(part.users.tolist()) for part in (split.contradicted, split.held_contradicted))
    assert (len(training), len(evaluation)) == (10, 10)
    assert training | evaluation == set(range(20))
    assert not set(split.untouched.users.tolist()) & set(split.held_untouched.users.tolist())
    for user in evaluation:
        rows = contradicting.rows[contradicting.users == user]
        later = split.held_contradicted.rows[split.held_contradicted.users == user]
        assert later.tolist() == [int(rows[0]) + 10, int(rows[0]) + 22]  # 19 events are left: 12 and 7
    few, _ = groups(everyone, verdicts, 0.5, 6, seed=1)
    assert (len(np.unique(few.contradicted.users)), len(np.unique(few.held_untouched.users))) == (3, 3)
    late = verdicts.__class__(verdicts.wrong, verdicts.crossed + 18, verdicts.calm)  # one event is left afterwards
    assert len(groups(everyone, late, 0.5, 100, seed=1)[0].held_contradicted) == 0


@pytest.mark.parametrize("seed", [0, 1])
def test_a_mirrored_adapter_has_the_opposite_effect(tmp_path: Path, seed: int) -> None:
    llm = tiny.load(tmp_path / "llm", seed=seed)
    adapters.create(llm.decoder, TRAINING, 2)
    with torch.no_grad():
        for weight in adapters.trainable(llm.decoder, TRAINING):
            weight.normal_(std=0.003)
    adapters.save(llm.decoder, TRAINING, tmp_path / "a")
    adapters.remove(llm.decoder, TRAINING)
    from models.language.attention import Blank

    inputs, positions = torch.randn(1, 4, llm.hidden_size), torch.arange(4)[None]
    plain = llm.run(inputs, positions, Blank(llm.device), adapted=True)
    changes = []
    for folder in (tmp_path / "a", mirrored(tmp_path / "a")):
        llm.load_adapter(folder, "x")
        llm.use_adapter("x")
        changes.append(llm.run(inputs, positions, Blank(llm.device), adapted=True) - plain)
    assert float(changes[0].norm()) > 1e-5
    assert float((changes[0] + changes[1]).norm()) < 0.1 * float(changes[0].norm())
    signs = [load_file(tmp_path / name / "adapter_model.safetensors") for name in ("a", "mirrored")]
    assert all(torch.equal(signs[0][key], -signs[1][key] if "lora_B" in key else signs[1][key]) for key in signs[0])
