"""`make fuzz`: hostile bytes for every decoder.

    python -m tests.fuzz.run --inputs 1000000 --seed 1
"""

from __future__ import annotations

import argparse
import sys
import time

from tests.fuzz.campaign import LIMIT_S, campaign, report
from tests.fuzz.decoders import decoders


def main() -> int:
    """Return 1 if an exception escaped or an input took longer than 10 ms."""
    parser = argparse.ArgumentParser(description="Hostile bytes for every decoder of bytes from outside.")
    parser.add_argument("--inputs", type=int, default=1_000_000, help="in all, at least")
    parser.add_argument("--seed", type=int, default=1, help="the same seed makes the same inputs")
    parser.add_argument("--only", default="", help="decoders whose name contains this text")
    asked = parser.parse_args()
    began = time.monotonic()
    with decoders() as all_of_them:
        chosen = [decoder for decoder in all_of_them if asked.only in decoder.name]
        outcomes = campaign(chosen, asked.inputs, asked.seed)
    print(report(outcomes))
    print(f"{time.monotonic() - began:.0f} s, seed {asked.seed}")
    return int(any(one.escaped or one.slowest_s > LIMIT_S for one in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())
