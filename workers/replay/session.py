"""What replays of one model on one data set share: loaded once, then played under any number of policies."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from models.data.loading import load_dataset
from schemas.artifacts import Artifact, Registry
from schemas.errors import FreshetError
from schemas.messages import Judgement, KnowledgeRequest
from schemas.settings import Evidence, RefreshSettings, Settings
from streams.decisions.planner import Plan, Planner
from streams.decisions.policies import PolicyName
from streams.profile.catalogue import ItemVectors
from streams.profile.fold import Event
from streams.profile.state import dumps, loads
from workers.replay.budget import KNOBS, meet_budget
from workers.replay.generations import CachedGenerator, folder_of
from workers.replay.play import (
    JUDGING,
    PRICED_BLOCK,
    WAVE,
    Replay,
    Step,
    fold_past,
    rehearse,
)
from workers.replay.record import Columns
from workers.replay.timeline import Timeline, timeline
from workers.roles.knowledge.generator import LlmGenerator
from workers.roles.ranking.ranker import Ranker
from workers.terminal.stages import Stages

# Seconds without progress after which a stage counts as hung. The language model is unpacked the first time.
STALL_S = {"data": 300.0, "models": 600.0, "past": 300.0, "budget": 300.0, "language model": 900.0, "replay": 900.0}
JUDGED_SHARE = 0.25  # share of users for the search of `judge`: five replays of them cost little more than one of all


@dataclass(frozen=True, slots=True)
class ReplayResult:
    """A finished replay.

    Args:
        figures: see `ReplayRecord.figures`, and the parameters; a repeated replay gives exactly the same values.
        columns: one row per predicted event.
        wall_s: run time without loading, seconds.
    """

    figures: dict[str, Any]
    columns: Columns
    wall_s: float


class ReplaySession:
    """A fitted model, its data set, and the users' states at the split.

    Args: settings: settings of the home that has the model. folder: the data set. stages: shows progress. events:
        number of events after the split to play; 0 = all. stock: past users have knowledge when they return, as an
        offline run at the split would have left it. These calls are counted separately; no policy pays for them.

    Raises:
        FreshetError: there is no model, no usable data, or no event after the split.
    """

    def __init__(
        self, settings: Settings, folder: Path, stages: Stages, events: int = 0, *, stock: bool = False,
    ) -> None:
        self.settings = settings
        self.stages = stages
        self.name = folder.resolve().name
        with stages.stage("data", STALL_S["data"]):
            dataset = load_dataset(folder, settings.events)
            self.artifact: Artifact = Registry(settings.home).open()
            self.timeline = timeline(dataset, self.artifact.card.split_time, events)
        self.data_hash = dataset.hash
        if self.artifact.card.data_hash not in ("", dataset.hash):
            stages.say(f"  note: model {self.artifact.model_version} was not fitted on the data in {folder}")
        with stages.stage("models", STALL_S["models"]):
            self._ranker = Ranker.load(settings)
            self._vectors = ItemVectors.load(self.artifact)
            self._calibration = self.artifact.calibration()
            self.generator = CachedGenerator(
                folder_of(settings.home, self.artifact.model_version, settings.llm), self.artifact.model_version,
                partial(LlmGenerator.load, settings, self.artifact))
        with stages.stage("past", STALL_S["past"]):
            self.restart(self.timeline, stock=stock)

    def restart(self, timeline: Timeline, *, stock: bool) -> None:
        """Replace the timeline."""
        self.timeline, self.stock = timeline, stock
        past = fold_past(self.planner(self.settings.refresh), timeline.past)
        self._past = {user: dumps(state) for user, state in past.items()}

    def planner(self, refresh: RefreshSettings) -> Planner:
        """Return a planner like the streams role's, with these refresh settings."""
        return Planner(
            self._vectors, self._calibration, replace(self.settings, refresh=refresh), self.artifact.model_version)

    def replay(
        self, refresh: RefreshSettings, events: Sequence[Event] | None = None, *, wave: int = WAVE,
        step: Step = lambda *_: None, listen: Callable[[Plan, Sequence[Judgement]], None] | None = None,
        evidence: Evidence | None = None,
    ) -> Replay:
        """Play the events (None = all) under a policy and return the finished replay.

        Args:
            evidence: overrides `settings.ranking.evidence`.
        """
        events = self.timeline.future if events is None else events
        states = {user: loads(state) for user, state in self._past.items()}
        priced = refresh.policy == "freshet" and refresh.calls_per_1000 is not None
        playing = Replay(
            self.planner(refresh), self._ranker, self.generator, states, llm_batch=self.settings.llm.batch,
            ranking=replace(self.settings.ranking, evidence=evidence or self.settings.ranking.evidence),
            wave=wave, block=PRICED_BLOCK if priced else None, stock=self.stock,
            listen=listen)
        try:
            playing.play(events, step)
        finally:
            self.generator.flush()
        return playing

    def rehearse(self, refresh: RefreshSettings) -> tuple[list[KnowledgeRequest], list[KnowledgeRequest]]:
        """Return the planner's requests on all events without models, and those of the stock."""
        states = {user: loads(state) for user, state in self._past.items()}
        return rehearse(self.planner(refresh), states, self.timeline.future, stock=self.stock)

    def meet_budget(
        self, refresh: RefreshSettings, budget: float | None, seed: int = 0, evidence: Evidence | None = None,
    ) -> RefreshSettings:
        """Return the settings with which a policy keeps to a budget of calls per 1,000 events; None = unchanged.

        Raises:
            FreshetError: the policy cannot keep to a budget.
        """
        if budget is None:
            return refresh
        if refresh.policy == "freshet":
            if not 0 < budget <= 1000:
                raise FreshetError(
                    f"the budget must be more than 0 and at most 1,000 calls per 1,000 events, not {budget:g}")
            return replace(refresh, calls_per_1000=budget)
        events = self.timeline.future
        if refresh.policy not in KNOBS:
            raise FreshetError(
                f"policy {refresh.policy} cannot keep to a budget; --budget is for freshet, {', '.join(KNOBS)}")
        if refresh.policy == "judge":
            events = sample(events, JUDGED_SHARE, seed)
        with self.stages.stage("budget", STALL_S["budget"]) as step:
            tries = 0

            def calls(tried: RefreshSettings) -> float:
                nonlocal tries
                if tried.policy == "judge":
                    asked = self.replay(
                        tried, events, step=lambda *_: step(tries, tries + 1), evidence=evidence).record.calls
                else:
                    asked = len(self.rehearse(tried)[0])
                tries += 1
                step(tries, tries + 1, f"{1000 * asked / len(events):.1f} calls per 1,000 events")
                return 1000 * asked / len(events)

            return meet_budget(refresh, budget, calls)[0]

    def run(
        self, policy: PolicyName, budget: float | None, seed: int, evidence: Evidence | None = None,
    ) -> ReplayResult:
        """Play all events under a policy within a budget.

        Args:
            budget: calls per 1,000 events; None = as the settings say.
            seed: of the bootstrap, and of the sample of users for the budget search of `judge`.
            evidence: overrides `settings.ranking.evidence`.

        Raises:
            FreshetError: the policy cannot keep to a budget.
        """
        refresh = self.meet_budget(replace(self.settings.refresh, policy=policy), budget, seed, evidence)
        if policy not in JUDGING | {"never"}:
            with self.stages.stage("language model", STALL_S["language model"]) as step:
                asked, stock = self.rehearse(refresh)
                self.generator.prepare([request.history for request in (*stock, *asked)], step)
        llm_s, began = self.generator.llm_s, time.perf_counter()
        with self.stages.stage("replay", STALL_S["replay"]) as step:
            playing = self.replay(refresh, step=step, evidence=evidence)
        knob = "calls_per_1000" if policy == "freshet" else KNOBS[policy].name if policy in KNOBS else None
        figures: dict[str, Any] = {
            "dataset": self.name, "data_hash": self.data_hash, "model_version": self.artifact.model_version,
            "policy": policy, "budget": budget, "seed": seed, "stock": self.stock,
            "evidence": evidence or self.settings.ranking.evidence,
            "setting": {knob: getattr(refresh, knob)} if knob else {},
        } | playing.record.figures(seed) | {
            "store_bytes_per_user": round(playing.store.bytes_per_user(), 1),
            "state_bytes_per_user": round(sum(len(dumps(s)) for s in playing.states.values()) / len(playing.states), 1),
            "llm_seconds": round(self.generator.llm_s - llm_s, 3),
        }
        return ReplayResult(figures, playing.record.columns(), time.perf_counter() - began)


def sample(events: Sequence[Event], share: float, seed: int) -> list[Event]:
    """Return the events of a share of the users. The same seed selects the same users, in any order of events."""
    limit = int(share * 2**32)

    def chosen(user: str) -> bool:
        digest = hashlib.blake2b(f"{seed}\x1f{user}".encode("utf-8", "surrogatepass"), digest_size=4).digest()
        return int.from_bytes(digest) < limit

    some = [event for event in events if chosen(event.user_id)]
    return some or list(events)
