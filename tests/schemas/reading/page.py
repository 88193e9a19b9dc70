"""docs/events.md, written from the table of what the reader takes: `python -m tests.schemas.reading.page`."""

from __future__ import annotations

from pathlib import Path

from schemas.errors import PoisonError
from tests.schemas.reading.cases import GROUPS, Case, reader

PAGE = Path(__file__).parents[3] / "docs" / "events.md"
LONGEST = 110  # characters of a record that are shown
HEAD = """# What events may look like

Made from the table that the tests check, by `python -m tests.schemas.reading.page`.

An event is a user, an item and a time. Streams, `freshet produce`, `freshet fit` and `freshet replay` read it with the same
function (`schemas/reading`), so an id or a time means the same wherever it comes from. A record that is no event goes to
`dead-letters` with the reason; a file's row is counted and shown.

## In short

- **Ids** are text of 1 to 256 characters, or whole numbers: 7, 7.0 and "7" are one. In files blanks around a value are cut.
- **Times** count from 1970 in seconds, milliseconds, microseconds or nanoseconds; the size of the number says which. Or
  they are text: ISO 8601, a date, RFC 2822. Without a time zone they are UTC. A time before 1980 is refused, since days,
  hours and minutes read as seconds lie there (`FRESHET_EVENTS_EARLIEST=1970-01-01` for times that do not count from 1970).
- **Names**: `user_id`, `item_id`, `event_time` (or `timestamp`, `ts`, `time`), and, if you like, `event_type`, `event_id`,
  in any spelling (`userId`, `User-ID`); where they are absent, the names of public data sets (`visitorid`, `asin`,
  `unixReviewTime`, …, `schemas/reading/fields.py` lists them). Others are mapped by `FRESHET_EVENTS_FIELDS=user_id=visitorid,item_id=product.id`.
- **Envelopes** are recognised: trackers (Segment, RudderStack, Snowplow, Google Analytics 4, Amplitude, Mixpanel, PostHog,
  mParticle, Matomo), connectors (Kafka Connect, Debezium, Maxwell, Canal, Airbyte, Logstash, EventBridge, SNS) and
  CloudEvents. `FRESHET_EVENTS_ENVELOPE` names one, or `none`.
- **No id**: the texts `null`, `undefined`, `None`, `nan` are refused as ids: they are what programs write for no value, and
  would make one user of everybody without one. In files `NA`, `N/A` and `\\N` are no value, too.
- **A record** is one JSON object, an array of them, or an object a line, with or without a byte order mark or Confluent's framing.
- **Avro, Protobuf and JSON** that a schema registry's serializers wrote are read with `FRESHET_REGISTRY_URL`
  ([connect](connect.md#schema-registry)). Avro's timestamps, decimals and UUIDs and Protobuf's `Timestamp` are
  times and ids like any others. A Protobuf id of 0 that is not `optional` was not set, so it is missing.

In `freshet.toml` other names are a table:

<!-- test: settings -->
```toml
[events.fields]
user_id = "visitorid"
item_id = "product.id"
```

## Files

`freshet fit --data` takes a folder with `events.*` and `items.*`, the folder of a public data set, or a file of events;
`freshet produce` takes a file or standard input.

| | |
|---|---|
| formats | values separated by comma, tab, semicolon, `\\|`, `::` or blanks; JSON lines (or Python's dicts as text); a JSON array; Parquet; each also in gzip, zstd, bz2 or xz, or as a folder of parts |
| encoding | UTF-8, with or without a byte order mark; another one is refused by name, or read with `FRESHET_EVENTS_ENCODING=cp1252` (`freshet fit --encoding`) |
| columns | found by their names as in records, or mapped as above; `FRESHET_EVENTS_COLUMNS` (`freshet fit --columns`) names those of a file without a header |
| broken rows | an unclosed quote, a wrong number of columns, a broken line of JSON: one row each, counted, the first one shown |
| public data sets | MovieLens 100K, 1M, 10M, 20M, 25M; Amazon reviews 2014, 2018 and 2023 with their `meta_` file; Yelp; RetailRocket; RecBole's atomic files; H&M; Steam; Goodreads; OTTO; Taobao; YooChoose; Diginetica; KuaiRec; Gowalla, Brightkite and Foursquare check-ins; Last.fm 1K |

After reading there is an account of each file:

```text
events.csv: 240 rows read, 239 used
  1 skipped: a quote is not closed (first in line 42: u5,i16,1700815160,"great buy)
```

If fewer than half of the events' items are in the catalogue, three ids of each are shown; if none is, that is an error.
"""


def page() -> str:
    """Return the page."""
    parts = [HEAD]
    for name, cases in GROUPS.items():
        taken = [case for case in cases if not isinstance(case.wanted, str)]
        refused = [case for case in cases if isinstance(case.wanted, str)]
        parts.append(f"\n## {name}\n\n| record | read as | |\n|---|---|---|")
        parts.extend(f"| {_code(case)} | {_events(case)} | {_note(case)} |" for case in taken if _short(case))
        parts.append("\n| record | refused because |\n|---|---|")
        parts.extend(f"| {_code(case)} | {_cell(_reason(case))}{'; ' + case.note if case.note else ''} |"
                     for case in refused if _short(case))
    return "\n".join(parts) + "\n"


def _short(case: Case) -> bool:
    """Long records are tested, but say little to a reader; envelopes are shown by their beginning."""
    return len(case.value) <= LONGEST or case.value.startswith((b'{"type', b'{"specversion', b'{"op', b'{"event_id'))


def _code(case: Case) -> str:
    text = case.value.decode("utf-8", "backslashreplace")
    text = "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)
    shown = f"`{_cell(text if len(text) <= LONGEST else text[:LONGEST] + '…')}`" if text.strip() else "(empty)"
    return shown.replace("``", "` `")


def _events(case: Case) -> str:
    return "; ".join(f"`{_cell(user)}`, `{_cell(item)}`, {at:.9g}, {kind}" if at < 1e6 else
                     f"`{_cell(user)}`, `{_cell(item)}`, {at:.6f}".rstrip("0").rstrip(".") + f", {kind}"
                     for user, item, at, kind in case.wanted if not isinstance(case.wanted, str))


def _reason(case: Case) -> str:
    try:
        reader(**case.settings).record(case.value, case.headers)
    except PoisonError as error:
        return error.reason
    raise AssertionError(case)


def _note(case: Case) -> str:
    given = [f"`{name}={value}`" for name, value in case.settings.items()]
    return "; ".join([*given, *([case.note] if case.note else [])])


def _cell(text: str) -> str:
    text = "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)
    return text.replace("|", "\\|").replace("`", "'")


if __name__ == "__main__":
    PAGE.write_text(page())
