"""Which files of a data set hold what: our layout, public data sets, any table with telling column names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from schemas.errors import DataError
from schemas.reading.fields import NAMES

# Column names of items, as `schemas.reading.fields.plain_name` has them; an earlier name counts before a later one.
ITEM_NAMES: Mapping[str, tuple[str, ...]] = {
    "item_id": (*NAMES["item_id"], "id"),
    "title": ("title", "name", "movietitle", "productname", "prodname", "itemname", "titlewithoutseries", "appname"),
    "attributes": ("attributes", "genres", "genre", "class", "categories", "category", "categorycode", "brand",
                   "store", "maincategory", "producttypename", "colourgroupname", "city"),
}
OWN = "events and items"  # name of our own layout
_TABLES = (".csv", ".tsv", ".jsonl", ".json", ".ndjson", ".parquet", ".txt", ".dat", ".inter", ".item")
_PACKED = (".gz", ".zst", ".bz2", ".xz")
# Files of public data sets without a header, and files of events with the one of their items. "*" = any part of a name.
_BARE: Mapping[str, tuple[str, tuple[str, ...], str]] = {
    "UserBehavior.csv": ("Taobao", ("user_id", "item_id", "category_id", "behavior_type", "timestamp"), ","),
    "yoochoose-clicks.dat": ("YooChoose", ("session_id", "timestamp", "item_id", "category"), ","),
    "yoochoose-buys.dat": ("YooChoose", ("session_id", "timestamp", "item_id", "price", "quantity"), ","),
    "loc-*_totalCheckins.txt": ("check-ins", ("user_id", "timestamp", "latitude", "longitude", "location_id"), "\t"),
    "dataset_TSMC2014_*.txt": ("Foursquare", (
        "user_id", "venue_id", "category_id", "category", "latitude", "longitude", "offset", "timestamp"), "\t"),
    "userid-timestamp-artid-artname-traid-traname.tsv": ("Last.fm", (
        "user_id", "timestamp", "artist", "artist_name", "song_id", "song"), "\t"),
}
_LATIN = {"Foursquare"}
_PAIRS: Sequence[tuple[str, str, str]] = (
    ("H&M", "transactions_train.csv", "articles.csv"),
    ("Steam", "steam_reviews.json", "steam_games.json"),
    ("Goodreads", "goodreads_reviews*.json", "goodreads_books*.json"),
    ("Goodreads", "goodreads_interactions*.json", "goodreads_books*.json"),
    ("KuaiRec", "big_matrix.csv", ""), ("Diginetica", "train-item-views.csv", ""))
_NESTED = 3  # folders within folders, as an archive unpacks them


@dataclass(frozen=True, slots=True)
class Table:
    """A file of a data set and how it is written.

    Args:
        columns: names of the columns of a file without a header.
        separator, encoding: "" = found out, UTF-8.
        lists: what separates the values of one field, "" for a single value ("Action|Comedy").
    """

    path: Path
    columns: tuple[str, ...] = ()
    separator: str = ""
    encoding: str = ""
    lists: str = ""


@dataclass(frozen=True, slots=True)
class Layout:
    """The tables of a data set.

    Args:
        items: None if the data set has no texts of items.
        flags: columns of `items` that hold 1 where the item has the attribute of that name.
    """

    name: str
    events: Table
    items: Table | None
    flags: tuple[str, ...] = field(default=())


_GENRES = ("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama",
           "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western")
_RATED = ("user_id", "item_id", "rating", "timestamp")


def recognise(path: Path, depth: int = 0) -> Layout:
    """Return the layout of a data set.

    Args:
        path: a folder, or the file with the events.
        depth: folders that were gone into.

    Raises:
        DataError: nothing in it looks like events.
    """
    if path.is_file():
        return _beside(path)
    if not path.is_dir():
        raise DataError(f"{path} is missing; a data set is a folder with events.csv and items.jsonl, the folder of a "
                        "public data set, or a file of events")
    known = _known(path)
    if known is not None:
        return known
    if parts_of(path):
        return Layout("a file of events in parts", Table(path), None)
    events = _named(path, ("events",)) or _only(path)
    if events is None:
        inner = [entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith((".", "__"))]
        if len(inner) == 1 and depth < _NESTED and not any(_table(entry.name) for entry in path.iterdir()):
            return recognise(inner[0], depth + 1)
        raise DataError(
            f"events.csv is missing in {path}, and it is no data set known by name; it holds {_listing(path)}")
    items = _named(path, ("items", "catalogue", "catalog"))
    if items is None and events.name.startswith("events"):
        raise DataError(f"items.jsonl is missing in {path}; each of its lines is a JSON object with item_id, title and "
                        f"attributes. The folder holds {_listing(path)}")
    return Layout(OWN, Table(events), None if items is None else Table(items))


def _known(folder: Path) -> Layout | None:
    """Return the layout of a public data set, recognised by its files' names."""
    has = {entry.name: entry for entry in folder.iterdir() if entry.is_file()}
    return (_movielens(has) or _yelp(has) or _recbole(has) or _retailrocket(has) or _amazon(has) or _bare(has)
            or _paired(has))


def _bare(has: Mapping[str, Path]) -> Layout | None:
    for pattern, (name, columns, separator) in _BARE.items():
        if (found := _like(has, pattern)) is not None:
            return Layout(name, Table(found, columns, separator, "latin-1" if name in _LATIN else ""), None)
    return None


def _paired(has: Mapping[str, Path]) -> Layout | None:
    for name, pattern, of_items in _PAIRS:
        if (events := _like(has, pattern)) is not None:
            items = _like(has, of_items) if of_items else None
            return Layout(name, Table(events), None if items is None else Table(items))
    return None


def _like(has: Mapping[str, Path], pattern: str) -> Path | None:
    """Return the first file whose name, without that of a compression, is like the pattern."""
    return next((entry for name, entry in sorted(has.items()) if fnmatchcase(_unpacked(name), pattern)), None)


def _movielens(has: Mapping[str, Path]) -> Layout | None:
    if "ratings.dat" in has and "movies.dat" in has:
        return Layout("MovieLens-1M or 10M", Table(has["ratings.dat"], _RATED, "::", "latin-1"), Table(
            has["movies.dat"], ("item_id", "title", "genres"), "::", _movielens_encoding(has["movies.dat"]), "|"))
    if "u.data" in has and "u.item" in has:
        columns = ("item_id", "title", "released", "video_released", "url", *_GENRES)
        return Layout("MovieLens-100K", Table(has["u.data"], _RATED, "\t"),
                      Table(has["u.item"], columns, "|", "latin-1"), _GENRES)
    if "ratings.csv" in has and "movies.csv" in has:
        return Layout("MovieLens", Table(has["ratings.csv"]), Table(has["movies.csv"], lists="|"))
    return None


def _yelp(has: Mapping[str, Path]) -> Layout | None:
    review = _starting(has, "yelp_academic_dataset_review")
    business = _starting(has, "yelp_academic_dataset_business")
    if review is None:
        return None
    return Layout("Yelp", Table(review), None if business is None else Table(business, lists=","))


def _recbole(has: Mapping[str, Path]) -> Layout | None:
    inter = next((entry for name, entry in sorted(has.items()) if name.endswith(".inter")), None)
    if inter is None:
        return None
    items = has.get(inter.name.removesuffix(".inter") + ".item")
    return Layout("RecBole atomic files", Table(inter, separator="\t"),
                  None if items is None else Table(items, separator="\t"))


def _retailrocket(has: Mapping[str, Path]) -> Layout | None:
    return Layout("RetailRocket", Table(has["events.csv"]), None) if has.keys() >= {
        "events.csv", "category_tree.csv"} else None


def _amazon(has: Mapping[str, Path]) -> Layout | None:
    reviews = [entry for name, entry in sorted(has.items()) if _table(name) and not name.startswith("meta_")]
    meta = [entry for name, entry in sorted(has.items()) if name.startswith("meta_")]
    if len(reviews) == 1 and len(meta) == 1:
        return Layout("Amazon reviews", Table(reviews[0]), Table(meta[0]))
    return None


def _beside(path: Path) -> Layout:
    """Return the layout of a single file of events, with the file of its items if one lies beside it."""
    if path.name.endswith(".inter"):
        items = path.with_name(path.name.removesuffix(".inter") + ".item")
        return Layout("RecBole atomic files", Table(path, separator="\t"),
                      Table(items, separator="\t") if items.is_file() else None)
    if path.name in {"ratings.dat", "u.data", "ratings.csv"} or path.name.startswith("yelp_academic_dataset_review"):
        known = _known(path.parent)
        if known is not None:
            return known
    if (known := _bare({path.name: path}) or _paired({path.name: path})) is not None:
        beside = {entry.name: entry for entry in path.parent.iterdir() if entry.is_file()}
        return next((one for one in (_paired(beside),) if one is not None and one.events.path == path), known)
    stem = path.name.removeprefix("reviews_")  # of 2014
    for meta in (path.with_name(f"meta_{name}") for name in (path.name, stem, stem.replace("_5.", "."))):
        if meta.is_file():
            return Layout("Amazon reviews", Table(path), Table(meta))
    if path.name.startswith("events"):
        items_file = _named(path.parent, ("items", "catalogue", "catalog"))
        if items_file is not None:
            return Layout(OWN, Table(path), Table(items_file))
    return Layout("a file of events", Table(path), None)


def parts_of(path: Path) -> list[Path]:
    """Return the parts of a file that Spark or the like wrote as a folder, [] if it is none."""
    return sorted(entry for entry in path.iterdir() if entry.is_file() and entry.name.startswith("part-")) \
        if path.is_dir() else []


def _table(name: str) -> bool:
    return _unpacked(name).endswith(_TABLES)


def _unpacked(name: str) -> str:
    for packed in _PACKED:
        name = name.removesuffix(packed)
    return name


def _named(folder: Path, stems: Sequence[str]) -> Path | None:
    for stem in stems:
        found = sorted(entry for entry in folder.iterdir()
                       if entry.name.split(".")[0] == stem and _table(entry.name)
                       and (entry.is_file() or parts_of(entry)))
        if found:
            return found[0]
    return None


def _only(folder: Path) -> Path | None:
    tables = [entry for entry in folder.iterdir() if entry.is_file() and _table(entry.name)]
    return tables[0] if len(tables) == 1 else None


def _starting(has: Mapping[str, Path], stem: str) -> Path | None:
    return next((entry for name, entry in sorted(has.items()) if name.startswith(stem) and _table(name)), None)


def _movielens_encoding(path: Path) -> str:
    """Return "" for UTF-8: MovieLens-1M is Latin-1, 10M is UTF-8."""
    try:
        path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        return "latin-1"
    return ""


def _listing(folder: Path) -> str:
    names = sorted(entry.name for entry in folder.iterdir())
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") or "nothing"
