"""Settings of what is recommended: the length of lists, the trust radius, repeats, rules."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic.dataclasses import dataclass

from schemas.settings.meanings import Repeats, again_after_s
from schemas.settings.sections import STRICT, pairs

Evidence = Literal["current", "stored"]
Most = Annotated[int, Field(ge=1, le=1000)]
Factor = Annotated[float, Field(ge=1e-6, le=1e6, allow_inf_nan=False)]


def _again(text: str) -> str:
    again_after_s(text)
    return text


# Patterns only describe: the checks name what is wrong.
Again = Annotated[str, AfterValidator(_again), Field(
    json_schema_extra={"pattern": r"(never|always|(after )?[0-9]{1,6}(\.[0-9]{1,3})? days?)"})]


def _plain(table: dict[str, Any]) -> dict[str, Any]:
    """Return a table whose names a variable can hold.

    Raises:
        ValueError: a name is empty, or has a comma or an equals sign.
    """
    for name in table:
        if not name or "," in name or "=" in name:
            raise ValueError(f"{name!r}: names are not empty and have no , and no =")
    return table


def names(text: str) -> tuple[str, ...]:
    """Return the names in a text, which commas separate, each once."""
    return tuple(dict.fromkeys(name for part in text.split(",") if (name := part.strip())))


@dataclass(frozen=True, config=STRICT)
class RankingSettings:
    """What is recommended."""

    top: int = Field(default=10, ge=1, le=1000, description="items per recommendation")
    epsilon: float | None = Field(
        default=None, description="full trust radius: up to 0.1 the nats that any item may lose; above 0.1 the rest is "
                                  "the chance of losing more; 0 = behaviour alone, 100 = no bound, None = as calibrated"
    )
    batch: int = Field(default=256, ge=1, description="requests per forward pass")
    repeat: Again = Field(
        default="never", description="when an item that the user was interested in may be recommended again: never, "
                                     "always, or after a time without it, such as: after 30 days")
    repeat_taken: Again = Field(
        default="never", description="the same for an item that the user took (a purchase); it decides where the user "
                                     "was interested in the item, too")
    evidence: Evidence = Field(
        default="current", description="what a user's history says about items, in closed form: current = computed "
                                       "for every ranking, stored = as it was when knowledge was generated")

    popular_days: float = Field(
        default=7.0, gt=0, le=3650, description="days after which an event counts half in what is popular, which is "
                                                "what a user without history gets")
    allow: str = Field(
        default="", max_length=4000, description="labels, separated by commas: only items with one of them; empty = "
                                                     "all")
    deny: str = Field(
        default="", max_length=4000, description="labels, separated by commas: no items with one of them")
    most: Annotated[dict[str, Most], BeforeValidator(pairs), AfterValidator(_plain)] = Field(
        default_factory=dict,
        description="at most so many items of a list with the same value: brand=2 for labels that begin with brand:, "
                    "*=3 for every label; in the file a table `[ranking.most]`")
    pin: str = Field(
        default="", max_length=4000, description="items that come first in every list, separated by commas, except for "
                                                 "users who may not have them")
    boost: Annotated[dict[str, Factor], BeforeValidator(pairs), AfterValidator(_plain)] = Field(
        default_factory=dict,
        description="factors on the probability of items with a label, or of one item by its id: "
                    "sale=1.5,clearance=0.5; in the file a table `[ranking.boost]`")
    quote: bool = Field(
        default=False, description="recommendations quote what a language model wrote about their items")

    @property
    def repeats(self) -> Repeats:
        """When items may be recommended again."""
        return Repeats(again_after_s(self.repeat), again_after_s(self.repeat_taken))

    @property
    def current_evidence(self) -> bool:
        """Whether evidence is computed for every ranking."""
        return self.evidence == "current"

    @property
    def labels_allowed(self) -> tuple[str, ...]:
        """The labels in `allow`."""
        return names(self.allow)

    @property
    def labels_denied(self) -> tuple[str, ...]:
        """The labels in `deny`."""
        return names(self.deny)

    @property
    def pinned(self) -> tuple[str, ...]:
        """The item ids in `pin`."""
        return names(self.pin)
