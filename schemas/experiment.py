"""Assignment of users to the arms of an online experiment. Pure functions, so any service can compute a user's arm."""

from __future__ import annotations

import hashlib
from typing import Literal

Arm = Literal["", "control", "treatment"]


def position(user_id: str, name: str) -> float:
    """Return the user's position in [0, 1) in experiment `name`.

    It is a hash of the user id (BLAKE2b, 64 bits) keyed by the name: the same on every machine, uniform over users, and
    independent between experiments, so their control groups are unrelated.
    """
    key = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=32).digest()
    digest = hashlib.blake2b(user_id.encode("utf-8", "surrogatepass"), digest_size=8, key=key).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2.0**53  # a float holds 53 bits, so the result stays below 1


def arm(user_id: str, name: str, control: float) -> Arm:
    """Return the arm of a user; "" without an experiment (empty name).

    Args:
        control: share of users in the control group. Raising it only adds users to the group.
    """
    if not name:
        return ""
    return "control" if position(user_id, name) < control else "treatment"
