"""Where an event's fields are in what a producer sends, and what their values mean."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from decimal import Decimal
from functools import lru_cache
from typing import Any

MAX_ID = 256  # characters
MAX_TYPE = 64  # characters
DEFAULT_TYPE = "interaction"

# The places of each field, of which the first that has a value counts; "a.b.0" is the first in b in a.
Paths = Mapping[str, tuple[str, ...]]
# What producers call the time of an event, in the order in which they count.
PLAIN: Paths = {
    "user_id": ("user_id",), "item_id": ("item_id",), "event_time": ("event_time", "timestamp", "ts", "time"),
    "event_type": ("event_type",), "event_id": ("event_id",)}


# What producers and public data sets call the fields, without case, `_`, `-`, blanks, `@` and `$`; an earlier name
# counts before a later one. Looked for at the top of an object, or among a file's columns, where PLAIN's are absent.
NAMES: Mapping[str, tuple[str, ...]] = {
    "user_id": ("userid", "user", "uid", "visitorid", "reviewerid", "customerid", "memberid", "clientid", "accountid",
                "username", "msno", "userpseudoid", "sessionid", "session"),
    "item_id": ("itemid", "item", "iid", "parentasin", "asin", "movieid", "productid", "businessid", "articleid",
                "sku", "isbn", "trackid", "videoid", "bookid", "songid", "artistid", "gameid", "appid", "newsid",
                "contentid", "locationid", "venueid", "poiid", "gmapid", "productviewsku", "itemsku", "aid"),
    "event_time": ("eventtime", "timestamp", "ts", "time", "unixreviewtime", "datetime", "date", "tdat", "createdat",
                   "eventtimestamp", "timestampms", "tsms", "unixtime", "occurredat", "createdtime", "eventdate",
                   "dateadded", "reviewtime", "timestarted", "checkintime", "servertimestamp", "sourcetsms"),
    "event_type": ("eventtype", "event", "behavior", "behaviour", "behaviortype", "action", "actiontype", "type"),
    "event_id": ("eventid",)}
_SESSIONS = ("sessionid", "session")  # stand for a user where nothing else does, not where a user is just not known
_WIDEST = 1000  # names of an object that are looked at
# What programs write for "no value", when they turn it into a text. Everybody without an id would become one user.
NOTHING = frozenset({"null", "NULL", "undefined", "None", "nan", "NaN"})
# Wrappers of a single value: MongoDB's extended JSON, Avro's JSON encoding of a union.
_WRAPPED = frozenset({"$oid", "$numberLong", "$numberInt", "$numberDouble", "$uuid", "string", "long", "int", "double"})


_BARE = str.maketrans("", "", "_- @$")
_PLACE = {name: (place, field) for field, names in NAMES.items() for place, name in enumerate(names)}


def plain_name(name: str) -> str:
    """Return a name as `NAMES` has it."""
    return name[:64].lower().translate(_BARE)


@lru_cache(1024)  # a producer's events have the same names: 0.2 µs instead of 5
def _known_names(names: tuple[str, ...]) -> Mapping[str, tuple[str, ...]]:
    return _named(names)


def _named(names: tuple[str, ...]) -> Mapping[str, tuple[str, ...]]:
    """Return those of an object's names that `NAMES` has, by field, in its order."""
    found: dict[str, list[tuple[int, str]]] = {}
    for name in names:
        if (known := _PLACE.get(plain_name(name))) is not None:
            found.setdefault(known[1], []).append((known[0], name))
    named = {field: tuple(name for _, name in sorted(places)) for field, places in found.items()}
    users = tuple(name for name in named.get("user_id", ()) if plain_name(name) not in _SESSIONS)
    return {**named, "user_id": users} if users else named


def by_name(data: Mapping[str, Any], field: str) -> Any:
    """Return the value under one of the names that others give a field; None if there is none but lists and objects."""
    names = tuple(data)
    if len(names) > _WIDEST:
        return None
    usual = len(names) <= 50 and sum(map(len, names)) <= 1000  # what is kept is 2 MB at most
    for name in (_known_names if usual else _named)(names).get(field, ()):
        value = bare(data[name])
        if value is not None and value != "" and not isinstance(value, dict | list | bool):
            return value
    return None


def bare(value: Any) -> Any:
    """Return the value in {"$oid": value} and the like."""
    if isinstance(value, dict) and len(value) <= 2:
        if len(value) == 1:
            (name, inner), = value.items()
            return inner if name in _WRAPPED else value
        if value.keys() == {"scale", "value"}:  # Debezium's decimal of any scale: Oracle's ids
            return _decimal(value)
    return value


def _decimal(value: Mapping[str, Any]) -> Any:
    try:
        unscaled, scale = base64.b64decode(value["value"], validate=True), int(value["scale"])
    except (binascii.Error, TypeError, ValueError, OverflowError):
        return value
    if len(unscaled) > 32 or not 0 <= scale <= 100:
        return value
    whole, rest = divmod(int.from_bytes(unscaled, "big", signed=True), 10**scale)
    return whole if not rest else whole + rest / 10**scale


def lookup(data: Any, path: str) -> Any:
    """Return the value at a path of names and list positions joined by dots; None if it is not there."""
    if isinstance(data, dict) and path in data:  # also names that hold a dot
        return data[path]
    for name in path.split("."):
        if isinstance(data, dict):
            data = data.get(name)
        elif isinstance(data, Sequence) and not isinstance(data, str | bytes) and name.isdecimal():
            at = int(name)
            data = data[at] if at < len(data) else None
        else:
            return None
    return data


def first(data: Any, paths: Sequence[str]) -> Any:
    """Return the first value that is neither absent, null nor an empty text; None if there is none."""
    for path in paths:
        value = lookup(data, path)
        if value is not None and value != "":
            return value
    return None


def identifier(value: Any) -> str:
    """Return an id as text: 7, 7.0 and "7" are one.

    Raises:
        ValueError: it is no id; the text says why.
    """
    value = bare(value)
    if isinstance(value, bool):
        raise ValueError("a boolean is no id")
    if isinstance(value, Decimal):  # of Parquet
        value = int(value) if value == value.to_integral_value() and abs(value) < 10**MAX_ID else float("nan")
    if isinstance(value, float):
        # Above 2^53 a float has lost digits: two ids would become one.
        if not value.is_integer() or abs(value) > 2**53:
            raise ValueError("a number with a fraction or more than 53 bits is no id; send it as text")
        value = int(value)
    if isinstance(value, int):
        if abs(value) >= 10**MAX_ID:  # Python refuses to write numbers of thousands of digits
            raise ValueError(f"longer than {MAX_ID} characters")
        value = str(value)
    if not isinstance(value, str):
        raise ValueError("missing" if value is None else "neither a text nor a number")
    if not value:
        raise ValueError("missing")
    if len(value) > MAX_ID:
        raise ValueError(f"longer than {MAX_ID} characters")
    if value in NOTHING:
        raise ValueError(f"the text {value!r} is what a program writes for no value")
    return value


def label(value: Any, limit: int, default: str = "") -> str:
    """Return an optional field as text of at most `limit` characters, `default` if it is null or empty.

    Raises:
        ValueError: it is a list or an object.
    """
    value = bare(value)
    if value is None or value == "":
        return default
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer() and abs(value) <= 2**53:
        value = int(value)
    if isinstance(value, int) and abs(value) >= 10**limit:
        return default
    if not isinstance(value, str | int | float):
        raise ValueError("neither a text nor a number")
    return str(value)[:limit]
