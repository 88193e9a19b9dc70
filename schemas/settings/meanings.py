"""What events mean: each type's effect and weight. Streams, ranking, replay and fit read the same table.

| effect | evidence of interest | recommended again |
|---|---|---|
| interest | yes | as `ranking.repeat` says |
| taken | yes | as `ranking.repeat_taken` says |
| against | no, and what the user's earlier events said for the item is taken back | never |
| neutral | no | not affected |

The weight is what an event adds to an item's popularity.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, isfinite
from typing import Literal, get_args

from schemas.reading.fields import MAX_TYPE, plain_name

Effect = Literal["interest", "taken", "against", "neutral"]
WEIGHTS: Mapping[Effect, float] = {"interest": 1.0, "taken": 1.0, "against": -1.0, "neutral": 0.0}
HEAVIEST = 1000.0
DAY_S = 86_400.0
# Types that are remembered as they are spelled. A producer that writes an id into the type must not fill the memory.
SPELLINGS = 4096

# The names that trackers, shops and public data sets use, without case, `_`, `-`, blanks, `@` and `$`.
NAMES: Mapping[Effect, tuple[str, ...]] = {
    "interest": (
        "interaction", "view", "viewed", "productviewed", "productview", "viewproduct", "itemview", "viewitem",
        "viewcontent", "contentview", "detail", "viewdetail", "detailview", "productdetail", "pageview", "pv", "click",
        "clicked", "productclicked", "productclick", "itemclick", "selectitem", "selectcontent", "listclick", "open",
        "opened", "read", "rating", "rate", "rated", "review", "reviewed", "productreviewed", "like", "liked", "love",
        "loved", "fav", "favorite", "favorited", "favourite", "star", "bookmark", "save", "saved", "share", "shared",
        "productshared", "follow", "followed", "cart", "addtocart", "addedtocart", "addtobasket", "productadded",
        "wishlist", "addtowishlist", "addedtowishlist", "productaddedtowishlist", "wishlistproductaddedtocart",
        "begincheckout", "initiatecheckout", "checkout", "checkoutstarted", "addpaymentinfo", "addshippinginfo", "play",
        "played", "listen", "listened", "stream", "watch", "comment", "checkin", "visit"),
    "taken": (
        "purchase", "purchased", "productpurchased", "buy", "bought", "order", "ordered", "ordercompleted",
        "orderplaced", "orderpaid", "checkoutcompleted", "transaction", "conversion", "watched", "finished",
        "completed", "complete", "consumed", "download", "downloaded", "install", "installed", "rent", "rented", "book",
        "booked", "booking", "borrowed"),
    "against": (
        "return", "returned", "productreturned", "itemreturned", "refund", "refunded", "orderrefunded",
        "ordercancelled", "ordercanceled", "dislike", "disliked", "thumbsdown", "downvote", "skip", "skipped", "hide",
        "hidden", "dismiss", "dismissed", "notinterested", "block", "blocked"),
    "neutral": (
        "impression", "impressions", "exposure", "show", "shown", "display", "displayed", "productlistviewed",
        "listview", "viewitemlist", "productlistfiltered", "viewpromotion", "selectpromotion", "promotionviewed",
        "promotionclicked", "search", "searched", "productssearched", "removefromcart", "removedfromcart",
        "removefrombasket", "productremoved", "removefromwishlist", "productremovedfromwishlist", "viewcart",
        "cartviewed", "unlike", "unliked", "unfavorite", "unfollow", "hover", "scroll", "heartbeat", "ping"),
}


@dataclass(frozen=True, slots=True)
class Meaning:
    """What an event of one type means.

    Args:
        weight: what it adds to an item's popularity.
        known: whether the type is in the table; others count as interest.
    """

    effect: Effect = "interest"
    weight: float = 1.0
    known: bool = True

    @property
    def evidence(self) -> bool:
        """Whether the event is evidence of interest in its item."""
        return self.effect in {"interest", "taken"}


_UNKNOWN = Meaning(known=False)
_DEFAULTS = {name: Meaning(effect, WEIGHTS[effect]) for effect, names in NAMES.items() for name in names}


class Meanings(dict[str, Meaning | None]):
    """Event type, however it is spelled → its meaning; None = interest that counts once, as most events.

    Args:
        table: `events.meanings`: event type → effect, or effect:weight. It comes before the usual names.
    """

    def __init__(self, table: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self._names = _DEFAULTS | {plain_name(name): parse(text) for name, text in (table or {}).items()}

    def __missing__(self, kind: str) -> Meaning | None:
        """Look up a spelling for the first time."""
        found: Meaning | None = self._names.get(plain_name(kind), _UNKNOWN)
        if found == Meaning():
            found = None
        if len(self) < SPELLINGS:
            self[kind] = found
        return found

    def evidence(self, kind: str) -> bool:
        """Return whether an event of this type is evidence of interest in its item."""
        meaning = self[kind]
        return meaning is None or meaning.evidence


def parse(text: str) -> Meaning:
    """Return the meaning in `effect` or `effect:weight`.

    Raises:
        ValueError: it is none; the text says what to write.
    """
    name, colon, number = (part.strip() for part in text.partition(":"))
    effect = next((one for one in get_args(Effect) if one == name), None)
    if effect is None:
        raise ValueError(f"{name!r} is no effect; write {', '.join(get_args(Effect))}, or one of them with a weight: "
                         "interest:2")
    if not colon:
        return Meaning(effect, WEIGHTS[effect])
    try:
        weight = float(number)
    except ValueError:
        raise ValueError(f"{number!r} is no weight; write a number, such as {effect}:2") from None
    sign = "positive" if effect in {"interest", "taken"} else "negative" if effect == "against" else ""
    if not isfinite(weight) or abs(weight) > HEAVIEST or not sign or (weight > 0) != (sign == "positive") or not weight:
        raise ValueError(f"{effect}:{number}: " + (
            f"the weight of {effect} is {sign}, at most {HEAVIEST:g} in size" if sign else "neutral has no weight"))
    return Meaning(effect, weight)


def check_table(table: dict[str, str]) -> dict[str, str]:
    """Return the table as it is.

    Raises:
        ValueError: a name cannot be an event type, is there twice, or has no meaning.
    """
    names: dict[str, str] = {}
    for name, text in table.items():
        if not name or len(name) > MAX_TYPE or "," in name or "=" in name:
            raise ValueError(f"{name!r} cannot be an event type: 1 to {MAX_TYPE} characters without , and =")
        if (other := names.setdefault(plain_name(name), name)) != name:
            raise ValueError(f"{other!r} and {name!r} are the same event type; keep one of them")
        try:
            parse(text)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return table


_AFTER = re.compile(r"(?:after\s+)?(\d+(?:\.\d+)?)\s*(?:d|days?)", re.IGNORECASE)


def again_after_s(text: str) -> float:
    """Return the seconds in `never` (infinite), `always` (0) or `after 30 days`.

    Raises:
        ValueError: it is none of these.
    """
    name = text.strip().lower()
    if name in {"never", "always"}:
        return inf if name == "never" else 0.0
    if found := _AFTER.fullmatch(name):
        return float(found[1]) * DAY_S
    raise ValueError(f"{text!r}: write never, always, or after 30 days")


@dataclass(frozen=True, slots=True)
class Repeats:
    """When an item that a user had may be recommended again: seconds of event time since the newest such event.

    Args:
        interest: of items that the user was interested in.
        taken: of items that the user took.
    """

    interest: float = inf
    taken: float = inf

    @property
    def never(self) -> bool:
        """Whether nothing is recommended again."""
        return self.interest == inf and self.taken == inf

    @property
    def dated(self) -> bool:
        """Whether the times of items that left the history are needed."""
        return 0.0 < self.interest < inf
