"""LoRA training on contradictions, with a tiny random language model."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from models.aligning.align import TRAINING, TRIAL, Groups, align, train
from models.aligning.cohort import Cohort, FrozenModels, cohort_of, harm, margins, newest
from models.evidence.ease import Ease
from models.knowledge.objectives import masked_loss
from models.language import adapters
from models.language.item_cache import ItemCache
from models.serving.requests import RankBatch, UserKnowledge
from models.systems.lwgr.knowledge import KnowledgeModel
from schemas.errors import FreshetError
from schemas.settings import AlignmentSettings, FitSettings
from tests.models import tiny
from tests.workers.fitted import DIM, N, ranking_model

SETTINGS = AlignmentSettings(samples=24, rank=4, steps=25, batch=8, learning_rate=1e-2, restraint=0.0)


def parts_in(folder: Path) -> FrozenModels:
    llm = tiny.load(folder / "llm")
    cache = ItemCache.build(llm, [f"{row} things" for row in range(N)], folder / "items", item_tokens=8)
    torch.manual_seed(0)
    knowledge = KnowledgeModel.create(FitSettings(dim=DIM, instructions=3, codes=4), llm)
    return FrozenModels(ranking_model(), knowledge, cache, llm, history=6, batch=8).freeze()


def cohort(users: int, seed: int, span: int = 4, low: int = 0, high: int = N) -> Cohort:
    """Random histories whose judged events are items from `low` up to `high`."""
    rng = np.random.default_rng(seed)
    histories = [rng.integers(0, N, rng.integers(4, 12)) for _ in range(users)]
    for history in histories:
        at = newest(history, span)
        history[at:] = rng.integers(low, high, len(history) - at)
    return cohort_of([history.tolist() for history in histories], [newest(h, span) for h in histories], span)


def vectors(parts: FrozenModels) -> np.ndarray:
    return parts.knowledge.generate(torch.ones(3, DIM), [[0, 1], [1, 2], [-1, -1]], parts.cache, parts.llm).vectors


@pytest.fixture
def parts(tmp_path: Path) -> FrozenModels:
    return parts_in(tmp_path)


def gradients(parts: FrozenModels, group: Cohort, gamma: float) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Gradients of the masked loss for a new adapter with nonzero effect."""
    decoder = parts.llm.decoder
    torch.manual_seed(1)
    adapters.create(decoder, TRAINING, 2)
    parts.llm.use_adapter(TRAINING)
    weights = adapters.trainable(decoder, TRAINING)
    with torch.no_grad():
        for weight in weights:
            weight.normal_(std=0.1)
    at = group.moments(parts, np.arange(len(group)))
    positive, zero = harm(parts, group, at, parts.vectors(at))
    loss, mask = masked_loss(positive, zero, gamma)
    loss.backward() if loss.requires_grad else None
    grads = [torch.zeros_like(weight) if weight.grad is None else weight.grad.clone() for weight in weights]
    for module in (parts.ranking.reference, parts.ranking.fused, parts.knowledge, parts.llm.causal):
        assert all(weight.grad is None for name, weight in module.named_parameters() if f".{TRAINING}." not in name)
    parts.llm.use_adapter(None)
    adapters.remove(decoder, TRAINING)
    return grads, mask


def test_events_without_contradiction_give_no_gradient(parts: FrozenModels) -> None:
    group = cohort(6, 0)
    none, mask = gradients(parts, group, gamma=1e6)
    assert not mask.any()
    assert all(not grad.any() for grad in none)
    every, mask = gradients(parts, group, gamma=-1e6)
    assert mask.all()
    assert all(grad.any() for grad in every)


def test_gradient_comes_from_contradicted_events_only(parts: FrozenModels) -> None:
    group = cohort(6, 0, span=1)  # one event per user
    mixed, mask = gradients(parts, group, gamma=0.0)
    assert 0 < int(mask.sum()) < len(mask)
    alone, only = gradients(parts, group[np.flatnonzero(mask.numpy())], gamma=0.0)
    assert only.all()
    for one, other in zip(mixed, alone, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


def test_an_infinite_loss_outside_the_mask_is_ignored() -> None:
    positive = torch.tensor([1.0, float("inf")], requires_grad=True)
    loss, mask = masked_loss(positive, torch.tensor([0.5, float("inf")]), 0.0)
    loss.backward()
    assert mask.tolist() == [True, False]
    assert positive.grad is not None
    assert positive.grad.tolist() == [1.0, 0.0]


def state(parts: FrozenModels) -> dict[str, torch.Tensor]:
    modules = {"r": parts.ranking.reference, "f": parts.ranking.fused, "k": parts.knowledge, "l": parts.llm.causal}
    return {f"{name}.{key}": value.clone() for name, module in modules.items()
            for key, value in module.state_dict().items() if "lora_" not in key}


def test_training_reduces_contradictions_and_changes_only_the_adapter(parts: FrozenModels, tmp_path: Path) -> None:
    wrong, right = cohort(24, 1), cohort(8, 2)
    before, was = state(parts), margins(parts, wrong).value
    reported: list[dict[str, float]] = []
    metrics = train(parts, wrong, right, SETTINGS, tmp_path / "a", reported.append)
    after = state(parts)
    assert {key.replace(".base_layer", "") for key in after} == set(before)
    for key, value in after.items():
        assert torch.equal(value, before[key.replace(".base_layer", "")]), key
    np.testing.assert_array_equal(margins(parts, wrong).value, was)
    assert not adapters.names(parts.llm.decoder)
    assert len(reported) == SETTINGS.steps == metrics["steps"]
    assert 0 < metrics["trigger_rate_first"] <= 1
    parts.llm.load_adapter(tmp_path / "a", "a")
    parts.llm.use_adapter("a")
    now = margins(parts, wrong).value
    assert now.mean() > was.mean() + 0.02
    assert now[was < 0].mean() > was[was < 0].mean()


@pytest.mark.parametrize("current", [True, False])
def test_margins_equal_those_of_the_ranking_worker(parts: FrozenModels, current: bool) -> None:
    """With current or aging evidence, for histories that fit into one backbone window."""
    parts = replace(parts, current_evidence=current)
    rng = np.random.default_rng(0)
    parts.ranking.affinity = Ease(
        torch.from_numpy(rng.integers(0, N, (N, 4))), torch.from_numpy(rng.normal(size=(N, 4)).astype(np.float32)))
    parts.ranking.fused.evidence_gain.fill_(0.5)
    parts.ranking.fused.evidence_half_life.fill_(3.0)
    group = cohort(12, 0)
    group = group[np.flatnonzero(group.sequences.lengths() <= parts.ranking.max_len)]
    done = margins(parts, group)
    assert len(group) > 3
    for user, first in zip(group.users.tolist(), group.rows.tolist(), strict=True):
        start, stop = group.sequences.offsets[user : user + 2].tolist()
        items, cut = group.sequences.item[start:stop].tolist(), first - start
        read = np.full((1, parts.history), -1)
        read[0, :min(cut, parts.history)] = items[:cut][-parts.history:]
        made = parts.knowledge.generate(parts.ranking.user_hidden([items[:cut]]), read, parts.cache, parts.llm)
        evidence = parts.ranking.affinity.evidence(np.array([items[:cut]]))
        for at in range(cut, stop - start):
            known = UserKnowledge(
                made.vectors[0], evidence.items[0].numpy(), evidence.weights[0].numpy(), behind=at - cut)
            ((value,),) = parts.ranking.rank(RankBatch(
                [items[:at]], [[]], [known], [[(at, items[at])]], current_evidence=current)).margins
            assert value == pytest.approx(done.value[done.user == user][at - cut], abs=1e-4)


def test_the_kl_term_keeps_predictions_of_untouched_users(parts: FrozenModels, tmp_path: Path) -> None:
    wrong, right = cohort(24, 1), cohort(24, 2)
    was, moved = margins(parts, right).value, {}
    for weight in (0.0, 100.0):
        train(parts, wrong, right, replace(SETTINGS, restraint=weight), tmp_path / f"{weight}", lambda _: None)
        parts.llm.load_adapter(tmp_path / f"{weight}", "a")
        parts.llm.use_adapter("a")
        moved[weight] = np.abs(margins(parts, right).value - was).mean()
        parts.llm.use_adapter(None)
    assert moved[100.0] < 0.5 * moved[0.0]


def groups(seed: int = 1) -> Groups:
    """36 contradicted and 36 untouched users: two thirds are for training, the others are held out."""
    wrong, right = cohort(36, seed), cohort(36, seed + 1)
    (wrong, judged), (right, calm) = ((part[:24], part[24:]) for part in (wrong, right))
    assert not set(wrong.users.tolist()) & set(judged.users.tolist())
    return Groups(wrong, right, judged, calm)


def test_the_written_adapter_is_the_one_judged(parts: FrozenModels, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    made = align(parts, groups(), SETTINGS, tmp_path / "a", 2.0, lambda done, of, _: steps.append((done, of)))
    assert steps[-1][0] == steps[-1][1] == len(steps)
    assert parts.llm.adapter is None
    assert adapters.names(parts.llm.decoder).isdisjoint({TRAINING, TRIAL})
    parts.llm.load_adapter(tmp_path / "a", "a")
    parts.llm.use_adapter("a")
    np.testing.assert_array_equal(margins(parts, groups().held_contradicted).value, made.after.value)
    figures = made.figures()
    assert {"trigger_rate_first", "harm_before_p50", "harm_after_p90", "contradicted_low"} <= set(figures)
    assert {path.name for path in (tmp_path / "a").iterdir()} >= {"adapter_model.safetensors", "adapter_config.json"}


def test_an_adapter_that_harms_untouched_users_is_rejected(parts: FrozenModels, tmp_path: Path) -> None:
    """All contradicted users take one item and all others another, so one gains what the other loses."""
    wrong, right = cohort(24, 3, low=2, high=3), cohort(24, 4, low=3, high=4)
    made = Groups(wrong, right[:0], wrong, right)  # judged on the training users: a certain gain
    for bound, publish in ((10.0, True), (0.01, False)):
        settings = replace(SETTINGS, bound=bound, gamma=-1e6)
        out = align(parts, made, settings, tmp_path / f"{bound}", 2.0, lambda *_: None).verdict
        assert out.figures["contradicted_low"] > 0
        assert out.figures["untouched_low"] < -0.01
        assert out.publish == publish, out.reason
    assert "may fall by more than 0.01" in out.reason


def test_training_starts_from_the_adapter_in_use(parts: FrozenModels, tmp_path: Path) -> None:
    wrong, right = cohort(16, 1), cohort(8, 2)
    train(parts, wrong, right, SETTINGS, tmp_path / "a", lambda _: None)
    parts.llm.load_adapter(tmp_path / "a", "lora_a")
    parts.llm.use_adapter("lora_a")
    used = vectors(parts)
    idle = replace(SETTINGS, steps=1, learning_rate=1e-12)
    train(parts, wrong, right, idle, tmp_path / "b", lambda _: None)
    assert parts.llm.adapter == "lora_a"
    np.testing.assert_array_equal(vectors(parts), used)
    parts.llm.load_adapter(tmp_path / "b", "b")
    parts.llm.use_adapter("b")
    np.testing.assert_allclose(vectors(parts), used, rtol=1e-4, atol=1e-5)
    with pytest.raises(FreshetError, match="rank"):
        train(parts, wrong, right, replace(idle, rank=2), tmp_path / "c", lambda _: None)
    assert adapters.names(parts.llm.decoder) == {"lora_a", "b"}


def test_a_diverging_run_changes_nothing(parts: FrozenModels, tmp_path: Path) -> None:
    was = vectors(parts)
    gate = parts.knowledge.experts.gate
    sound = gate.detach().clone()
    gate.fill_(float("nan"))
    with pytest.raises(ArithmeticError, match="diverged"):
        train(parts, cohort(8, 1), cohort(8, 2), SETTINGS, tmp_path / "a", lambda _: None)
    gate.copy_(sound)
    np.testing.assert_array_equal(vectors(parts), was)
    assert not adapters.names(parts.llm.decoder)
    assert not (tmp_path / "a").exists()


CHILD = """
import sys, numpy as np
from pathlib import Path
from tests.models.aligning.test_align import parts_in, vectors
parts = parts_in(Path(sys.argv[1]))
parts.llm.load_adapter(Path(sys.argv[2]), "served")
parts.llm.use_adapter("served")
np.save(sys.argv[3], vectors(parts))
"""


@pytest.mark.slow
def test_a_fresh_process_gives_the_same_knowledge(parts: FrozenModels, tmp_path: Path) -> None:
    train(parts, cohort(16, 1), cohort(8, 2), SETTINGS, tmp_path / "a", lambda _: None)
    plain = vectors(parts)
    parts.llm.load_adapter(tmp_path / "a", "a")
    parts.llm.use_adapter("a")
    out = tmp_path / "out.npy"
    subprocess.run([sys.executable, "-c", CHILD, str(tmp_path), str(tmp_path / "a"), str(out)], check=True)
    assert np.abs(vectors(parts) - plain).max() > 1e-3
    np.testing.assert_array_equal(np.load(out), vectors(parts))
    weights = load_file(tmp_path / "a" / "adapter_model.safetensors")
    assert {name.rsplit(".", 2)[1] for name in weights} == {"lora_A", "lora_B"}
