"""Histories with and without drift, for benchmarks/drift/run.py.

Item vectors come from a behaviour-only backbone trained for a few epochs on the training part: centred, of length 1, as
in a fitted model's interest.safetensors.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from models.data import dataset as data
from models.data.loading import load_dataset
from schemas.settings import Settings, StateSettings
from streams.calibration.alarms import Rows
from streams.calibration.thresholds import MAX_OBSERVATIONS, History, choose_min_history, split_users
from streams.profile.catalogue import ItemVectors
from workers.training.thresholds import by_user

BEAUTY = Path(__file__).resolve().parents[3] / "shared" / "data" / "amazon-beauty"


@dataclass(frozen=True)
class Population:
    """Two disjoint halves of a data set's users, and the item vectors.

    Args:
        first: number of events before the first knowledge.
        tail: number of events of the other user after a planted change.
    """

    name: str
    vectors: ItemVectors
    calibration: list[History]
    others: list[History]
    first: int
    tail: int


@dataclass(frozen=True)
class Planted:
    """Shuffled histories of one user that continue as another's: item rows, and number of rows before the change."""

    rows: list[Rows]
    change: np.ndarray


def made_up(seed: int = 0) -> Population:
    """Return a synthetic population: 40 groups of items, users who like a few of them."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(40, 32))
    vectors = np.repeat(centres, 10, axis=0) + 0.7 * rng.normal(size=(400, 32))
    histories = []
    for _ in range(240):
        taste = np.repeat(rng.dirichlet(np.full(40, 0.15)), 10) / 10
        histories.append(rng.choice(400, int(rng.integers(20, 120)), p=taste / taste.sum()))
    items = ItemVectors([f"{n}" for n in range(400)], vectors.astype(np.float32))
    users = [History(rows, np.arange(len(rows), dtype=float)) for rows in histories]
    return Population("made-up users", items, *split_users(users, 10, seed), first=10, tail=50)


def population(name: str, folder: Path, settings: Settings, say: Callable[[str], None], *, tail: int, epochs: int,
               users: int, seed: int = 0) -> Population:
    """Return the users of a data set, at most `users` per half, with the training part of their histories."""
    dataset = load_dataset(folder)
    past, _ = data.split(dataset, settings.fit.train_fraction)
    vectors = ItemVectors(dataset.items, _item_vectors(dataset, past, settings, epochs, say))
    histories = by_user(past, np.arange(len(dataset.items)), len(dataset.users))
    first = choose_min_history(histories)
    calibration, others = split_users(histories, first, seed)
    return Population(name, vectors, calibration[:users], others[:users], first, tail)


def _item_vectors(dataset: data.Dataset, past: data.Events, settings: Settings, epochs: int,
                  say: Callable[[str], None]) -> np.ndarray:
    path = settings.home / "cache" / f"drift-{dataset.hash[:16]}-{epochs}.npy"
    if path.is_file():
        return np.load(path, allow_pickle=False)
    from torch.nn.functional import normalize

    from models.data.fold import Fold
    from models.scorers.training import train_reference

    fold = Fold.of(past, len(dataset.users), len(dataset.items))
    reference, _ = train_reference(
        fold, dataclasses.replace(settings.fit, epochs=epochs), settings.state.history,
        lambda done, total, seen: say(f"  item vectors: epoch {done} of {total}, NDCG@10 {seen['ndcg_at_10']:.4f}"))
    vectors = reference.item_side()[0].detach()
    unit = normalize(vectors - vectors.mean(0), dim=1).numpy().astype(np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, unit, allow_pickle=False)
    return unit


def shuffles(histories: list[History], first: int, seed: int) -> list[Rows]:
    """Return each user's items in random order, i.e. without drift."""
    rng = np.random.default_rng([seed, 3])
    return [rng.permutation(h.rows)[:first + MAX_OBSERVATIONS] for h in histories]


def plant(population: Population, histories: list[History], count: int, least: int, seed: int) -> Planted:
    """Return `count` histories in which another user takes over for `tail` events.

    The change is `least` to 100 events after the first knowledge. Both parts are in random order, so there is no other
    drift.
    """
    rng = np.random.default_rng([seed, 4])
    first, tail = population.first, population.tail
    before = [h.rows for h in histories if len(h.rows) >= first + least]
    after = [h.rows for h in histories if len(h.rows) >= tail]
    rows, change = [], []
    while len(rows) < count:
        old, new = before[int(rng.integers(len(before)))], after[int(rng.integers(len(after)))]
        if old is new:
            continue
        cut = int(rng.integers(first + least, min(len(old), first + 100) + 1))
        rows.append(np.concatenate([rng.permutation(old)[:cut], rng.permutation(new)[:tail]]))
        change.append(cut)
    return Planted(rows, np.array(change))


def interest_paths(rows: Rows, vectors: ItemVectors, settings: StateSettings) -> tuple[np.ndarray, np.ndarray]:
    """Return a user's short and long interest after each of n events, (n, d) each, as streams computes them."""
    out = []
    for half_life in (settings.short_half_life, settings.long_half_life):
        keep = 0.5 ** (1.0 / half_life)
        path, interest = np.zeros((len(rows), vectors.dim), np.float32), np.zeros(vectors.dim, np.float32)
        for turn, v in enumerate(vectors.vectors[rows]):
            interest *= np.float32(keep)
            interest += np.float32(1.0 - keep) * v
            path[turn] = interest
        out.append(path)
    return out[0], out[1]
