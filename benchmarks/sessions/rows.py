"""The rows of docs/sessions.md: session starts without text, with another user's, a stale and a fresh one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks.sessions.ageing import Played
from benchmarks.sessions.behaviour import PART, Prepared
from benchmarks.sessions.choose import ChosenIdea, Figures, Targets, figures
from benchmarks.sessions.guard import Use
from benchmarks.sessions.moments import Kind, SessionMoments
from benchmarks.sessions.world import World, targets_of
from models.data.dataset import FloatArray, IntArray
from models.measuring.intervals import paired_interval
from models.trust.region import log_probabilities, trust_region

Say = Callable[[str], None]
NONE = -1  # no text


@dataclass(frozen=True, slots=True)
class Row:
    """Figures of one row at m moments; `user`: (m,)."""

    name: str
    user: IntArray
    figures: Figures

    def against(self, other: Row) -> dict[str, Any]:
        """Return the difference in NDCG@10 with its interval over users, and its share of the other's NDCG@10."""
        mean, low, high = paired_interval(self.user, self.figures.ndcg - other.figures.ndcg)
        return {"mean": mean, "low": low, "high": high, "share": mean / max(1e-9, float(other.figures.ndcg.mean()))}

    def whole_against(self, other: Row) -> dict[str, float]:
        """Return the difference in NDCG over the whole catalogue with its interval over users."""
        mean, low, high = paired_interval(self.user, self.figures.whole - other.figures.whole)
        return {"mean": mean, "low": low, "high": high}

    def record(self, none: Row) -> dict[str, Any]:
        """Return the row as JSON; `none`: the row without text at the same moments."""
        return {"row": self.name, "moments": len(self.user), "ndcg_at_10": float(self.figures.ndcg.mean()),
                "recall_at_10": float(self.figures.recall.mean()), "logp": float(self.figures.logp.mean()),
                "gain": self.against(none), "whole": self.whole_against(none)}


class Server:
    """Serves the moments of a kind with any recorded texts, within any radius; what was scored before is kept.

    Args:
        texts: moments whose texts may be served, one after the other; a text is named by its place.
    """

    def __init__(self, world: World, use: Use, kind: Kind, texts: tuple[Kind, ...]) -> None:
        self._world, self._use = world, use
        self.moments: SessionMoments = world.moments[kind]
        self._prepared: Prepared = world.prepared(kind)
        self._texts = [text for name in texts for text in world.moments[name].text]
        encoded = [world.encoded[name] for name in texts]
        self._encoded = None if any(part is None for part in encoded) else np.concatenate(
            [part for part in encoded if part is not None])
        self.rows = np.concatenate([world.moments[name].row for name in texts])  # row of each text's moment
        self._kept: dict[tuple[int, int, float], tuple[float, ...]] = {}

    def row(self, name: str, text: IntArray, radius: FloatArray | None = None) -> Row:
        """Return the row that serves each moment with a text.

        Args:
            text: (m,) places of texts; `NONE` = without.
            radius: (m,) of the trust region, nats; None = no bound.
        """
        bound = np.full(len(text), np.inf) if radius is None else np.round(radius, 4)
        keys = [(at, int(one), float(most) if one >= 0 else 0.0)
                for at, (one, most) in enumerate(zip(text, bound, strict=True))]
        missing = [key for key in keys if key not in self._kept]
        for begin in range(0, len(missing), PART):
            part = missing[begin : begin + PART]
            self._kept |= dict(zip(part, self._score(part), strict=True))
        columns = np.array([self._kept[key] for key in keys]).T
        return Row(name, self.moments.user, Figures(*columns))

    def _score(self, keys: list[tuple[int, int, float]]) -> list[tuple[float, ...]]:
        at = np.array([key[0] for key in keys])
        text = np.array([key[1] for key in keys])
        radius = np.array([key[2] for key in keys])
        some = self.moments[at]
        targets: Targets = targets_of(some, self._world.split.test.item)
        base = self._world.behaviour.logits(self._prepared[at])
        material = self._world.matched(
            base, [self._texts[one] if one >= 0 else "" for one in text.tolist()],
            None if self._encoded is None else self._encoded[text], some.row, history=self._use.choice.idea.history)
        logits = torch.where(torch.from_numpy(text >= 0)[:, None], self._use(material), base)
        bounded = np.flatnonzero(np.isfinite(radius))
        if len(bounded):
            place = torch.from_numpy(bounded)
            logits[place] = trust_region(log_probabilities(base[place]), log_probabilities(logits[place]),
                                         torch.from_numpy(radius[bounded]))[0].float()
        found = figures(logits, targets)
        return list(zip(*(getattr(found, name).tolist() for name in Figures.__slots__), strict=True))


def others(user: IntArray, seed: int = 0) -> IntArray:
    """Return for each moment a moment of another user, (m,); `user`: (m,)."""
    rng = np.random.default_rng(seed)
    found = rng.permutation(len(user))
    while (same := np.flatnonzero(user[found] == user)).size:
        found[same] = rng.integers(len(user), size=len(same))
    return found


def firsts(later: SessionMoments, first: SessionMoments) -> IntArray:
    """Return for each later moment the place of its user's first moment, whose text is stale by now, (m,)."""
    place = {user: at for at, user in enumerate(first.user.tolist())}
    return np.array([place[user] for user in later.user.tolist()])


def at_first(world: World, use: Use, epsilon: float) -> list[Row]:
    """Return the rows at each user's first moment."""
    server = Server(world, use, "first", ("first",))
    own, full = np.arange(len(server.moments)), np.full(len(server.moments), epsilon)
    return [
        server.row("none", np.full(len(own), NONE)), server.row("another user's", others(server.moments.user)),
        server.row("fresh", own), server.row("fresh, in the region", own, full)]


def at_later(world: World, server: Server, once: Played, epsilon: float) -> list[Row]:
    """Return the rows at later moments; `server` knows the texts of `first` and `later` moments, in this order."""
    later, first = server.moments, world.moments["first"]
    own, stale = len(first) + np.arange(len(later)), firsts(later, first)
    trust = np.array([once.glances[row].trust for row in later.row.tolist()])
    full = np.full(len(later), epsilon)
    return [
        server.row("none", np.full(len(later), NONE)), server.row("another user's", len(first) + others(later.user)),
        server.row("stale", stale), server.row("stale, in the region", stale, full),
        server.row("stale, judge and region", stale, full * trust), server.row("fresh", own),
        server.row("fresh, in the region", own, full)]


def with_every_idea(world: World, choices: Sequence[ChosenIdea], say: Say = lambda _: None) -> list[dict[str, Any]]:
    """Return what each idea gains at `first` and `later` moments. Nothing is chosen by these figures."""
    out = []
    for choice in choices:
        first = Server(world, Use(choice, 1.0), "first", ("first",))
        later = Server(world, Use(choice, 1.0), "later", ("first", "later"))
        size, own = len(first.moments), np.arange(len(later.moments))
        none = later.row("none", np.full(len(own), NONE))
        stale = later.row("stale", firsts(later.moments, first.moments))
        fresh = later.row("fresh", size + own)
        out.append({
            "idea": choice.idea.name, "stale": stale.against(none), "fresh": fresh.against(none),
            "difference": fresh.against(stale), "whole": fresh.whole_against(stale),
            "first": first.row("fresh", np.arange(size)).against(first.row("none", np.full(size, NONE)))})
        say(f"{choice.idea.name}: first {out[-1]['first']['mean']:+.4f}, later {out[-1]['fresh']['mean']:+.4f}")
    return out


def policy_gains(server: Server, played: dict[str, Played], epsilon: float, say: Say = lambda _: None
                 ) -> list[dict[str, Any]]:
    """Return what each policy gains at later moments, as served within the region and without guard, and its calls."""
    later = server.moments
    place = {row: at for at, row in enumerate(server.rows.tolist())}
    none = server.row("none", np.full(len(later), NONE))
    out = []
    for name, done in played.items():
        glances = [done.glances[row] for row in later.row.tolist()]
        text = np.array([place.get(glance.text, NONE) for glance in glances])
        trust = np.array([glance.trust for glance in glances])
        bare, guarded = server.row(name, text), server.row(name, text, epsilon * trust)
        fresh = float(np.mean([glance.text == row for glance, row in zip(glances, later.row.tolist(), strict=True)]))
        out.append({"policy": name, "calls": done.calls, "fresh": fresh, "reasons": done.reasons,
                    "gain": bare.against(none), "guarded": guarded.against(none)})
        gain, kept = out[-1]["gain"]["mean"], out[-1]["guarded"]["mean"]
        say(f"{name}: {done.calls} calls, gain {gain:+.4f}, guarded {kept:+.4f}")
    return out
