"""Which users an online experiment holds out. Pure, so that any service can tell a user's arm without asking."""

from __future__ import annotations

import hashlib
from typing import Literal

Arm = Literal["", "control", "treatment"]


def position(user_id: str, name: str) -> float:
    """Return where in [0, 1) a user falls in experiment `name`.

    The user id is hashed under a key made of the name (BLAKE2b, 64 bits): the same on every machine and for ever,
    uniform over users, and independent between names, so that one experiment's control group is no other's.
    """
    key = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=32).digest()
    digest = hashlib.blake2b(user_id.encode("utf-8", "surrogatepass"), digest_size=8, key=key).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2.0**53  # 53 bits: every one of them fits a float below 1


def arm(user_id: str, name: str, control: float) -> Arm:
    """Return the arm of a user; "" where there is no experiment (no name).

    Args:
        control: share of users held out. Raising it only adds to them: whoever was control stays.
    """
    if not name:
        return ""
    return "control" if position(user_id, name) < control else "treatment"
