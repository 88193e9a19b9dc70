"""What the run's knowledge of users cost, from the knowledge role's counters and the messages. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_COUNTED = {"generations": "generated", "passes": "llm_calls", "tokens": "llm_tokens", "seconds": "generate_s"}


def cost(counters: Mapping[str, Any], users: int, events: int, per_hour: float = 0.0) -> dict[str, Any]:
    """Return figures of the language model's work for users.

    Args:
        counters: of the knowledge role at the end of the stream; {} = not known. A role that was restarted counts from
            its restart.
        users: users whose knowledge was made.
        events: events of the stream.
        per_hour: price of an hour of the role's machine, as `metrics.cost_per_hour` says; 0 = not known.

    Returns:
        `generations` (one per user and refresh), `passes` (batches through the model), `tokens`, `seconds`, each in
        total and per user under `per_user`; None = not known. `per_1000_events` of generations; `price`.
    """
    total: dict[str, float | None] = {
        name: float(counters[key]) if isinstance(counters.get(key), int | float) else None
        for name, key in _COUNTED.items()}
    made, seconds = total["generations"], total["seconds"]
    return {
        "users": users, "total": total,
        "per_user": {name: None if value is None or not users else value / users for name, value in total.items()},
        "per_1000_events": None if made is None else 1000 * made / max(1, events),
        "price": None if seconds is None or not per_hour else seconds / 3600 * per_hour}
