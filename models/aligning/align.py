"""Trains the language model on contradictions: LoRA under CoCo's gradient mask (arXiv 2510.14257).

L = Σ m ℓ⁺ / max(1, Σ m) + β KL(p_before ‖ p_after), m = 1[sg(ℓ⁺ − ℓ⁰) > γ]. Events without harm from knowledge give no
gradient (m = 0). The second term is an addition of Freshet: it keeps the fused distribution of users whose knowledge
was not contradicted. Only the adapter is trained; instructions, experts, fusion and item states stay fixed, so an
adapter can be loaded into and removed from a running system. ℓ⁺ and ℓ⁰ (`models/aligning/cohort.py`) are losses of the
fused scorer with and without the language model's vectors, without dropout.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from models.aligning.cohort import Cohort, FrozenModels, Margins, harm, margins
from models.aligning.publication import Paired, PublicationDecision, decide_publication
from models.data.dataset import IntArray
from models.knowledge.objectives import masked_loss
from models.language import adapters
from schemas.settings import AlignmentSettings

log = logging.getLogger(__name__)
TRAINING, TRIAL = "aligning", "aligned"  # adapter names in the decoder; served adapters are named lora_…
Step = Callable[[int, int, dict[str, float]], None]
"""step(done, total, metrics) after every training step and judged batch."""


@dataclass(frozen=True, slots=True)
class Groups:
    """Training and held-out cohorts. No user is in both."""

    contradicted: Cohort
    untouched: Cohort
    held_contradicted: Cohort
    held_untouched: Cohort


@dataclass(frozen=True, slots=True)
class AlignmentResult:
    """The result of one alignment run.

    Args:
        metrics: training metrics: steps, trigger rate in the first and last tenth of the steps, KL, seconds.
        before, after: margins of the held-out contradicted users' events.
    """

    verdict: PublicationDecision
    metrics: dict[str, float]
    before: Margins
    after: Margins

    def figures(self) -> dict[str, float]:
        """Return all figures of the run."""
        return self.metrics | self.verdict.figures | harms(self.before, self.after)


def align(
    parts: FrozenModels, groups: Groups, settings: AlignmentSettings, folder: Path, clip: float, step: Step,
    seed: int = 0,
) -> AlignmentResult:
    """Train an adapter into `folder`, evaluate the written files, and decide. The adapter in use stays in use.

    Args:
        parts: the models; this function freezes them.
        clip: the judge's B, nats.

    Raises:
        ArithmeticError: training diverged.
        FreshetError: the language model does not support the adapter.
    """
    parts.freeze()
    llm, used = parts.llm, parts.llm.adapter
    held = (groups.held_contradicted, groups.held_untouched)
    total = settings.steps + 2 * sum(-(-len(cohort) // parts.batch) for cohort in held)
    done = 0

    def moved(metrics: dict[str, float] | None = None) -> None:
        nonlocal done
        done += 1
        step(min(done, total), total, metrics or {})

    before = [margins(parts, cohort, moved) for cohort in held]
    metrics = train(parts, groups.contradicted, groups.untouched, settings, folder, moved, seed)
    try:
        llm.load_adapter(folder, TRIAL)  # judge the files that will be served, not the weights in memory
        llm.use_adapter(TRIAL)
        after = [margins(parts, cohort, moved) for cohort in held]
    finally:
        llm.use_adapter(used)
        adapters.remove(llm.decoder, TRIAL)
    contradicted, untouched = (_paired(*pair) for pair in zip(before, after, strict=True))
    verdict = decide_publication(contradicted, untouched, bound=settings.bound, clip=clip)
    return AlignmentResult(verdict, metrics, before[0], after[0])


def train(
    parts: FrozenModels, contradicted: Cohort, untouched: Cohort, settings: AlignmentSettings, folder: Path,
    step: Callable[[dict[str, float]], None], seed: int = 0,
) -> dict[str, float]:
    """Train an adapter, starting from the one in use, and write it to `folder`.

    Args:
        parts: the models, already frozen.
        step: called after every step with its metrics.

    Returns:
        Training metrics; nats and shares.

    Raises:
        ArithmeticError: the loss is not finite.
    """
    began = time.monotonic()
    llm, used = parts.llm, parts.llm.adapter
    before = _vectors(parts, untouched)
    adapters.create(llm.decoder, TRAINING, settings.rank)
    try:
        if used is not None:
            adapters.copy(llm.decoder, used, TRAINING)
        llm.use_adapter(TRAINING)
        weights = adapters.trainable(llm.decoder, TRAINING)
        optimizer = torch.optim.AdamW(weights, lr=settings.learning_rate, weight_decay=0.0)
        rng = np.random.default_rng(seed)
        wrong, right = _Rounds(len(contradicted), rng), _Rounds(len(untouched), rng)
        path: list[dict[str, float]] = []
        batch = settings.batch
        while len(path) < settings.steps:
            optimizer.zero_grad()
            try:
                now = _gradients(
                    parts, contradicted, wrong.take(batch), untouched, right.take(batch), before, settings)
            except torch.OutOfMemoryError:
                if batch == 1:
                    raise
                batch //= 2
                torch.cuda.empty_cache()
                log.warning("GPU memory is too small for %d users: going on with %d", 2 * batch, batch)
                continue
            if not all(np.isfinite(list(now.values()))):
                raise ArithmeticError(f"training diverged at step {len(path) + 1}: {now}")
            nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            path.append(now)
            step(now)
        adapters.save(llm.decoder, TRAINING, folder)
    finally:
        llm.use_adapter(used)
        adapters.remove(llm.decoder, TRAINING)
    tenth = max(1, len(path) // 10)
    ends = {"first": path[:tenth], "last": path[-tenth:]}
    return {f"{name}_{end}": float(np.mean([now[name] for now in part]))
            for end, part in ends.items() for name in path[0]} | {
        "steps": float(len(path)), "training_seconds": time.monotonic() - began}


def harms(before: Margins, after: Margins) -> dict[str, float]:
    """Return quantiles (nats) of ℓ⁺ − ℓ⁰ on held-out events before and after, and the share above 0."""
    out = {}
    for name, values in (("before", before.harm), ("after", after.harm)):
        if len(values) and np.isfinite(values).all():
            for quantile in (10, 50, 90):
                out[f"harm_{name}_p{quantile}"] = float(np.percentile(values, quantile))
            out[f"harmed_{name}"] = float((values > 0).mean())
    return out


def _gradients(
    parts: FrozenModels, contradicted: Cohort, wrong: IntArray, untouched: Cohort, right: IntArray, before: Tensor,
    settings: AlignmentSettings,
) -> dict[str, float]:
    at = contradicted.moments(parts, wrong)
    positive, zero = harm(parts, contradicted, at, parts.vectors(at))
    loss, mask = masked_loss(positive, zero, settings.gamma)
    kl = torch.zeros(())
    if len(right) and settings.restraint:
        at = untouched.moments(parts, right)
        now = parts.logits(at, parts.vectors(at)).log_softmax(-1)
        was = parts.logits(at, before[torch.from_numpy(right)]).log_softmax(-1)
        kl = (was.exp() * (was - now)).sum(-1).mean()
    (loss + settings.restraint * kl).backward()
    return {"trigger_rate": float(mask.float().mean()), "masked_loss": float(loss.detach()), "kl": float(kl.detach()),
            "harm": float((positive - zero).detach().mean())}


@torch.no_grad()
def _vectors(parts: FrozenModels, cohort: Cohort) -> Tensor:
    """Return knowledge (s, K, d) for every snapshot of a cohort, from the current language model."""
    made = [parts.vectors(cohort.moments(parts, chosen)) for chosen in cohort.chunks(parts.batch)]
    return torch.cat(made) if made else torch.zeros(0, *parts.knowledge.experts.shape)


class _Rounds:
    """Draws rows 0 … n − 1 in random order, each once per round."""

    def __init__(self, n: int, rng: np.random.Generator) -> None:
        self._n, self._rng = n, rng
        self._waiting: list[int] = []

    def take(self, k: int) -> IntArray:
        """Return the next k rows, at most n."""
        k = min(k, self._n)
        while len(self._waiting) < k:
            self._waiting += self._rng.permutation(self._n).tolist()
        taken, self._waiting = self._waiting[:k], self._waiting[k:]
        return np.array(taken, dtype=np.int64)


def _paired(before: Margins, after: Margins) -> Paired:
    return Paired(before.user, before.value, after.value)
