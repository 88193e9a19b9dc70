"""A made-up shop with planted texts.

Users have six topics and take them in turn, a session each: behaviour knows the six, a text names the next one, and for
the next sessions it names one that will not come.
"""

import csv
import json
from pathlib import Path

import numpy as np

TOPICS = ("nails", "hair", "bath", "scent", "teeth", "beard", "lips", "eyes", "hands", "feet", "sun", "skin")
EACH, USERS, SESSIONS, EVENTS = 24, 150, 10, 3
DAY = 86_400


def write(folder: Path, seed: int = 0, right: float = 0.85) -> Path:
    """Write events.csv, items.jsonl and knowledge/ into `folder` and return it.

    Args:
        right: share of texts that name the topic of the session that follows.
    """
    rng = np.random.default_rng(seed)
    knowledge = folder / "knowledge"
    knowledge.mkdir(parents=True)
    items = [(f"i{topic}-{n}", f"{name} thing {n}", f"{name} care") for topic, name in enumerate(TOPICS)
             for n in range(EACH)]
    _lines(folder / "items.jsonl", [{"item_id": item, "title": title} for item, title, _ in items])
    _lines(knowledge / "items.jsonl", [{"item_id": item, "keywords": words} for item, _, words in items])
    events, starts = [], []  # (time, user, item), (time, user, events before, keywords)
    for user in range(USERS):
        had: set[str] = set()
        liked = rng.choice(len(TOPICS), 6, replace=False).tolist()
        when = int(rng.integers(20)) * DAY
        for session in range(SESSIONS):
            topic = liked[session % len(liked)]
            named = topic if rng.random() < right else int(rng.integers(len(TOPICS)))
            starts.append((1_600_000_000 + when, user, len(had), f"{TOPICS[named]} something"))
            free = [f"i{topic}-{n}" for n in range(EACH) if f"i{topic}-{n}" not in had]
            for at, item in enumerate(rng.choice(free, EVENTS, replace=False).tolist()):
                had.add(item)
                events.append((1_600_000_000 + when + 60 * max(0, at - session % 2), f"u{user}", item))
            when += int(rng.integers(5, 15)) * DAY
    events.sort(key=lambda event: event[0])
    with (folder / "events.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["user_id", "item_id", "timestamp"])
        writer.writerows((user, item, time) for time, user, item in events)
    split, held = (events[int(len(events) * share)][0] for share in (0.8, 0.72))
    lines, begun = [], set()
    for time, user, before, keywords in sorted(starts):
        kind = "later" if user in begun else "first" if time > split else "training" if time > held else ""
        if before < EVENTS or not kind or (kind == "training" and time >= split):
            continue
        if kind == "first":
            begun.add(user)
        lines.append({"user_id": f"u{user}", "moment": kind, "events": before, "next_event_time": time,
                      "keywords": keywords, "clean": True})
    _lines(knowledge / "users.jsonl", lines)
    return folder


def _lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
