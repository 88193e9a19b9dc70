"""A web shop that never was: users whose tastes drift, items that come and go, returns, visitors without history.

The same seed gives the same shop. It writes a data folder to fit on (events.csv, items.jsonl) and live.jsonl, what
comes after: the catalogue as it is, events, changes, users who are here. Between the two commands go
`freshet fit --data shop` and `freshet up --port 9092`; docs/shop.md walks through it.

    .venv/bin/python examples/shop.py --out shop
    .venv/bin/python examples/shop.py --bootstrap localhost:9092
"""

from __future__ import annotations

import argparse
import csv
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from confluent_kafka import Producer

KINDS = ("tea", "coffee", "lamps", "chairs", "ropes", "knives", "maps", "boots")
BEGIN, DAY = 1_760_000_000.0, 86_400.0
Record = tuple[float, str, str, dict[str, Any] | None]  # time, topic, key, value; None removes the item


def _item(number: int, rng: random.Random) -> dict[str, Any]:
    kind, brand = KINDS[number % len(KINDS)], rng.choice(("Alder", "Birch", "Cedar"))
    return {"item_id": f"{kind}-{number}", "title": f"{brand} {kind} no. {number}", "attributes": [kind, brand],
            "labels": [f"kind:{kind}", f"brand:{brand}", *(["sale"] if rng.random() < 0.1 else [])],
            "price": round(rng.uniform(3, 90), 2), "available": True}


def _event(at: float, user: str, item: str, kind: str) -> Record:
    return at, "behaviour-events", user, {
        "user_id": user, "item_id": item, "event_type": kind, "event_time": round(at, 3)}


def shop(seed: int, users: int, items: int, days: int) -> Iterator[Record]:
    """Yield what happens in the shop, day by day; at its beginning the catalogue."""
    rng = random.Random(seed)
    offered = [_item(number, rng) for number in range(items)]
    yield from ((BEGIN, "catalogue", one["item_id"], one) for one in offered)
    tastes = {f"user-{n}": rng.sample(KINDS, 2) for n in range(users)}
    taken: dict[str, list[str]] = {}
    for day in range(days):
        at = BEGIN + day * DAY
        if day:  # one item comes, one is sold out for good, and a visitor is there who has never done anything
            gone, offered = offered[0], [*offered[1:], _item(items + day, rng)]
            yield at + 1, "catalogue", offered[-1]["item_id"], offered[-1]
            yield at + 2, "catalogue", gone["item_id"], {**gone, "available": False} if day % 2 else None
            yield at + 3, "user-seen", f"visitor-{day}", {"user_id": f"visitor-{day}", "deny": ["sale"]}
        for user in (name for name in tastes if rng.random() < 0.5):
            start = at + rng.uniform(10, DAY - 600)
            if rng.random() < 0.05:  # the user's interest moves on
                tastes[user] = [tastes[user][1], rng.choice(KINDS)]
            for step in range(rng.randint(1, 5)):
                liked = [one for one in offered if one["attributes"][0] == tastes[user][rng.random() < 0.2]]
                item = rng.choice(liked if liked and rng.random() < 0.9 else offered)["item_id"]
                kind = rng.choices(("Product Viewed", "Product Added", "Order Completed"), (8, 2, 2))[0]
                yield _event(start + 20 * step, user, item, kind)
                if kind == "Order Completed":
                    taken.setdefault(user, []).append(item)
            if taken.get(user) and rng.random() < 0.1:
                yield _event(start + 500, user, taken[user].pop(), "Product Returned")


def main() -> None:
    """Write the files, or send what happens after them to a broker."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("seed", 1), ("users", 60), ("items", 120), ("days", 30)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--out", type=Path, help="folder for events.csv, items.jsonl and live.jsonl")
    parser.add_argument("--bootstrap", help="address of a broker that gets what is in live.jsonl")
    given = parser.parse_args()
    records = sorted(shop(given.seed, given.users, given.items, given.days), key=lambda one: one[0])
    split = BEGIN + 0.8 * given.days * DAY
    past, later = [one for one in records if one[0] < split], [one for one in records if one[0] >= split]
    live = [*{one[2]: one for one in past if one[1] == "catalogue"}.values(), *later]
    if given.out:
        given.out.mkdir(parents=True, exist_ok=True)
        with (given.out / "events.csv").open("w", newline="") as file:
            rows = csv.DictWriter(file, ("user_id", "item_id", "event_type", "event_time"))
            rows.writeheader()
            rows.writerows(value for _, topic, _, value in past if topic == "behaviour-events" and value)
        items = {key: value for _, topic, key, value in past if topic == "catalogue" and value}
        messages = [{"topic": topic, "key": key, "value": value} for _, topic, key, value in live]
        for name, lines in (("items", list(items.values())), ("live", messages)):
            (given.out / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if given.bootstrap:
        producer = Producer({"bootstrap.servers": given.bootstrap})
        for _, topic, key, value in live:
            producer.produce(topic, key=key, value=None if value is None else json.dumps(value).encode())
        producer.flush()
    print(f"{len(past):,} records until the split, {len(live):,} after it")


if __name__ == "__main__":
    main()
