from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from benchmarks.alignment.run import convict, groups, mirrored
from models.aligning.align import TRAINING
from models.aligning.cohort import Cohort, Margins, cohort_of
from models.language import adapters
from tests.models import tiny


def cohort(users: int = 40, each: int = 30, span: int = 12) -> Cohort:
    """Users of `each` events with a snapshot every `span` events."""
    rng = np.random.default_rng(0)
    one = cohort_of([rng.integers(0, 9, each).tolist() for _ in range(users)], [1] * users, span)
    rows = np.concatenate([np.arange(row, row - 1 + each, span) for row in one.rows])
    return Cohort(one.sequences, rows, span)


def judged(over: Cohort, bad: set[int]) -> Margins:
    """Margins of ±1: users in `bad` lose on every event."""
    stop = np.minimum(over.rows + over.span, over.sequences.offsets[over.users + 1])
    snapshot = np.repeat(np.arange(len(over)), stop - over.rows)
    user = over.users[snapshot]
    value = np.where(np.isin(user, list(bad)), -1.0, 1.0)
    return Margins(snapshot, user, value, -value)


def test_the_judge_convicts_whom_knowledge_harms_and_nobody_twice() -> None:
    over = cohort()
    found = convict(over, judged(over, set(range(20))), bound=1.0, alpha=0.05)
    assert over.users[found.wrong].tolist() == list(range(20))
    assert set(found.crossed.tolist()) == {9}  # ten events at total contradiction
    assert over.users[found.calm].tolist() == list(range(20, 40))


def test_nobody_judges_what_taught_and_judges_look_at_later_events() -> None:
    over = cohort()
    found = convict(over, judged(over, set(range(20))), bound=1.0, alpha=0.05)
    made, convicting = groups(over, found, 0.5, 100, seed=1)
    users = [set(part.users.tolist()) for part in (made.contradicted, made.held_contradicted)]
    assert [len(group) for group in users] == [10, 10]
    assert users[0] | users[1] == set(range(20))
    assert not set(made.untouched.users.tolist()) & set(made.held_untouched.users.tolist())
    for user in users[1]:
        convicted = convicting.rows[convicting.users == user]
        later = made.held_contradicted.rows[made.held_contradicted.users == user]
        assert later.tolist() == [int(convicted[0]) + 10, int(convicted[0]) + 22]  # 19 events are left: 12 and 7
    few, _ = groups(over, found, 0.5, 6, seed=1)
    assert (len(np.unique(few.contradicted.users)), len(np.unique(few.held_untouched.users))) == (3, 3)
    late = found.__class__(found.wrong, found.crossed + 18, found.calm)  # one event is left after the conviction
    assert len(groups(over, late, 0.5, 100, seed=1)[0].held_contradicted) == 0


@pytest.mark.parametrize("seed", [0, 1])
def test_a_mirrored_adapter_pulls_the_other_way(tmp_path: Path, seed: int) -> None:
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
    moved = []
    for folder in (tmp_path / "a", mirrored(tmp_path / "a")):
        llm.load_adapter(folder, "x")
        llm.use_adapter("x")
        moved.append(llm.run(inputs, positions, Blank(llm.device), adapted=True) - plain)
    assert float(moved[0].norm()) > 1e-5
    assert float((moved[0] + moved[1]).norm()) < 0.1 * float(moved[0].norm())
    signs = [load_file(tmp_path / name / "adapter_model.safetensors") for name in ("a", "mirrored")]
    assert all(torch.equal(signs[0][key], -signs[1][key] if "lora_B" in key else signs[1][key]) for key in signs[0])
