"""Rules of a shop over a batch: scores and labels in, lists and the names of the rules that changed them out.

Filters (`allow`, `deny`) and factors (`boost`) come before the trust region, for the reference and the fused scores
alike: the region's promise holds for what they leave. Limits (`most`) and pins come after it: they choose among the
items in the order of what is served, and change no probability.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from math import log as ln

import torch
from torch import Tensor

from models.trust.region import log_probabilities
from schemas.messages import RankingRequest
from schemas.settings import RankingSettings
from workers.catalogue.view import Catalogue
from workers.roles.ranking.labels import Labels

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What one list must keep to.

    Args:
        allow: groups of labels; an item needs one of each group.
        deny: labels that an item must not have.
    """

    allow: tuple[tuple[str, ...], ...] = ()
    deny: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Filters:
    """What the rules leave of a batch.

    Args:
        allowed: (B, n) bool; None = everything, for everyone.
        boost: (n,) what is added to log-probabilities; None = nothing.
    """

    allowed: Tensor | None
    boost: Tensor | None

    def apply(self, logp: Tensor) -> Tensor:
        """Return log-probabilities (B, n) of the items left; a row of which nothing is left is −∞."""
        if self is NO_FILTERS:
            return logp
        if self.boost is not None:
            logp = logp + self.boost
        if self.allowed is not None:
            logp = logp.masked_fill(~self.allowed, -torch.inf)
        return log_probabilities(logp)

    def touches(self, best: Tensor) -> Tensor:
        """Return (B,) bool: whether the items in `best` (B, k) may be affected."""
        out = torch.zeros(len(best), dtype=torch.bool)
        if self.allowed is not None:
            out |= ~self.allowed.gather(1, best).all(1)
        if self.boost is not None:
            out |= bool((self.boost != 0).any())
        return out


NO_FILTERS = Filters(None, None)


@dataclass(frozen=True, slots=True)
class Arranged:
    """A list.

    Args:
        rows: item rows, best first, pins before all.
        scores: of the rows.
        rules: names of the limits and pins that changed it.
        short: whether limits left fewer items than wanted of those looked at.
    """

    rows: list[int]
    scores: list[float]
    rules: tuple[str, ...] = ()
    short: bool = False

    def scored(self) -> Iterator[tuple[int, float]]:
        """Yield the rows with their scores."""
        return zip(self.rows, self.scores, strict=True)


class ListRules:
    """The rules of the settings, and those of each request.

    Attributes:
        labels: of the items; up to date after `follow`.
    """

    def __init__(self, settings: RankingSettings) -> None:
        self.labels = Labels()
        self._allow, self._deny = settings.labels_allowed, settings.labels_denied
        self._boost, self._most = settings.boost, settings.most
        self._pinned = settings.pinned
        self._pins: tuple[int, ...] = ()
        self._warned: set[str] = set()

    def follow(self, catalogue: Catalogue, requests: Sequence[RankingRequest]) -> bool:
        """Take the catalogue as it is now, if there is any rule for these requests; return whether there is."""
        if not (self._allow or self._deny or self._boost or self._most or self._pinned
                or any(request.allow or request.deny for request in requests)):
            return False
        if self.labels.follow(catalogue):
            self._warn(catalogue)
        self._pins = tuple(catalogue.rows[item] for item in self._pinned if item in catalogue.rows)
        return True

    def _warn(self, catalogue: Catalogue) -> None:
        """Say which rules of the settings name what is not there, each once: most likely a slip of the pen."""
        labels = self.labels
        missing = [
            *(f"FRESHET_RANKING_ALLOW: no item has the label {name!r}" for name in self._allow if not labels.has(name)),
            *(f"FRESHET_RANKING_DENY: no item has the label {name!r}" for name in self._deny if not labels.has(name)),
            *(f"FRESHET_RANKING_BOOST: {name!r} is neither a label nor an item" for name in self._boost
              if not labels.has(name) and name not in catalogue.rows),
            *(f"FRESHET_RANKING_MOST: no item has a label that begins with {name + ':'!r}" for name in self._most
              if name != "*" and not labels.has_value_of(name)),
            *(f"FRESHET_RANKING_PIN: there is no item {name!r}" for name in self._pinned if name not in catalogue.rows)]
        for text in missing:
            if text not in self._warned:
                self._warned.add(text)
                log.warning("%s so far", text)

    def asked(self, request: RankingRequest) -> Wanted:
        """Return what a request's list must keep to."""
        groups = tuple(group for group in (self._allow, tuple(request.allow)) if group)
        return Wanted(groups, (*self._deny, *request.deny))

    def filters(self, asked: Sequence[Wanted], n: int) -> Filters:
        """Return what is left of n item rows for each list."""
        allowed: Tensor | None = None
        if any(one.allow or one.deny for one in asked):
            masks: dict[Wanted, Tensor] = {}
            for one in asked:
                if one not in masks:
                    mask = ~self.labels.mask(one.deny, n)
                    for group in one.allow:
                        mask &= self.labels.mask(group, n)
                    masks[one] = mask
            allowed = torch.stack([masks[one] for one in asked])
        boost: Tensor | None = None
        for name, factor in self._boost.items():
            mask = self._named(name, n)
            if mask.any():
                boost = torch.zeros(n) if boost is None else boost
                boost += mask * ln(factor)
        return NO_FILTERS if allowed is None and boost is None else Filters(allowed, boost)

    def _named(self, name: str, n: int) -> Tensor:
        """Return (n,) bool: the rows with this label or, where no row has it, with this item id."""
        mask = self.labels.mask([name], n)
        row = -1 if mask.any() else self.labels.row(name)
        if 0 <= row < n:
            mask[row] = True
        return mask

    def pins(self, n: int) -> tuple[int, ...]:
        """Return the rows of pinned items below n."""
        return tuple(row for row in self._pins if row < n)

    def width(self, top: int, n: int) -> int:
        """Return how many of n items `arrange` should look at first to fill a list of `top`."""
        return min(n, 8 * top if self._most else top)

    def arrange(
        self, items: Tensor, scores: Tensor, pinned: Tensor, top: int, pins: Sequence[int] = (),
    ) -> list[Arranged]:
        """Return the lists of a batch.

        Args:
            items, scores: (B, k) item rows, best first, and what is served of them; −∞ or NaN may not be listed.
            pinned: (B, p) what is served of the rows in `pins`.
            top: items per list; fewer where limits leave fewer.
        """
        out: list[Arranged] = []
        for rows, some, others in zip(items.tolist(), scores.tolist(), pinned.tolist(), strict=True):
            held = {row: score for row, score in zip(rows, some, strict=True) if score > -torch.inf}
            if self._most or pins:
                out.append(self._choose(held, {row: score for row, score in zip(pins, others, strict=True)
                                               if score > -torch.inf}, top))
            else:
                out.append(Arranged(list(held)[:top], list(held.values())[:top]))
        return out

    def _choose(self, ranked: Mapping[int, float], pins: Mapping[int, float], top: int) -> Arranged:
        """Return the first `top` of the pins, then of the other rows, that the limits let through."""
        used: Counter[tuple[str, str]] = Counter()
        chosen: dict[int, float] = {}
        rules: dict[str, None] = {}
        for row, score in {**pins, **ranked}.items():
            if len(chosen) == top:
                break
            values = [(name, label) for label in self.labels.of(row) for name in self._limited(label)]
            full = [name for name, label in values if used[name, label] >= self._most[name]]
            if full and row not in pins:  # a pin is what the shop asked for by name
                rules.update(dict.fromkeys(f"most={name}" for name in full))
                continue
            used.update(values)
            chosen[row] = score
        for row, natural in zip_longest([*pins][:top], [*ranked][: len(pins)]):
            if row is not None and row != natural:
                rules[f"pin={self.labels.id_of(row)}"] = None
        return Arranged([*chosen], [*chosen.values()], tuple(rules), bool(self._most) and len(chosen) < top)

    def _limited(self, label: str) -> list[str]:
        """Return the names in `most` that count a label."""
        return [name for name in self._most if name == "*" or label.partition(":")[0] == name]

    def changed(self, before: Sequence[int], after: Sequence[int], asked: Wanted) -> tuple[str, ...]:
        """Return the names of the filters and factors that changed a list.

        Args:
            before: the rows that would have been served without filters and factors, best first.
            after: those that are served.
        """
        rules: dict[str, None] = {}
        for row in before:
            has = frozenset(self.labels.of(row))
            rules.update(dict.fromkeys(f"deny={label}" for label in asked.deny if label in has))
            rules.update(dict.fromkeys(f"allow={'|'.join(group)}" for group in asked.allow if not has & set(group)))
        was, now = ({row: place for place, row in enumerate(rows)} for rows in (before, after))
        for name, factor in self._boost.items():
            for row in was.keys() | now.keys():
                if name in self.labels.of(row) or name == self.labels.id_of(row):
                    moved = was.get(row, len(before)) - now.get(row, len(after))
                    if moved > 0 < factor - 1 or moved < 0 < 1 - factor:
                        rules[f"boost={name}"] = None
        return tuple(rules)
