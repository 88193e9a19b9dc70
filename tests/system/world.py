"""A small synthetic data set: items of several genres, and users who like one genre and later another."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path

GENRES = ["drama", "comedy", "thriller", "western", "musical"]
WORDS = ["red", "blue", "night", "river", "king", "star", "lost", "city", "wild", "last", "glass", "winter"]


def write_data(folder: Path, *, users: int = 60, items: int = 80, per_user: int = 25, seed: int = 7) -> Path:
    """Write events.csv and items.jsonl. Users like one genre and change it halfway, so that interest drifts."""
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    genre_of = {f"i{n}": GENRES[n % len(GENRES)] for n in range(items)}
    with (folder / "items.jsonl").open("w") as out:
        for item, genre in genre_of.items():
            title = f"The {rng.choice(WORDS)} {rng.choice(WORDS)} {item}"
            out.write(json.dumps({"item_id": item, "title": title, "attributes": [genre]}) + "\n")
    by_genre = {genre: [item for item, of in genre_of.items() if of == genre] for genre in GENRES}
    rows = []
    for user in range(users):
        start = 1_600_000_000 + rng.randrange(30 * 86_400)
        first, second = rng.sample(GENRES, 2)
        for n in range(per_user):
            liked = by_genre[first if n < per_user // 2 else second]
            item = rng.choice(liked) if rng.random() < 0.9 else rng.choice(list(genre_of))
            rows.append((f"u{user}", item, start + n * rng.randrange(600, 2 * 86_400)))
    rows.sort(key=lambda row: row[2])
    with (folder / "events.csv").open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["user_id", "item_id", "timestamp"])
        writer.writerows(rows)
    return folder
