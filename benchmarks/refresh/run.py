"""The cost of a refresh in each system, measured on the versions in the model registry.

    freshet fit --data DIR --system lwgr      # and other systems to compare
    make bench-refresh ARGS='--users 64'

For the newest version of each system with knowledge: milliseconds per user of the knowledge worker's call, for single
users and full batches, and how many numbers per user go into the store. Users are synthetic: random items from the
catalogue, as many as a state keeps.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import orjson
import torch

from schemas.artifacts import Artifact, Registry
from schemas.errors import FreshetError
from schemas.settings import Settings, load
from workers.roles.knowledge.generator import LlmGenerator


def newest(registry: Registry) -> dict[str, Artifact]:
    """Return the newest version of each system that makes knowledge of users."""
    artifacts = {}
    for version in registry.versions():
        artifact = registry.open(version)
        if artifact.fitted_calibration().knowledge:
            artifacts[artifact.card.system] = artifact
    return artifacts


def measured(settings: Settings, artifact: Artifact, users: int, seed: int = 0) -> dict[str, float | str]:
    """Return the cost of refreshing synthetic users."""
    generator = LlmGenerator.load(settings, artifact)
    rng = np.random.default_rng(seed)
    items = np.array(artifact.items())
    length = min(len(items), settings.state.history)
    histories = [rng.choice(items, length, replace=False).tolist() for _ in range(users)]
    generated = generator.generate(histories[: settings.llm.batch])  # warm-up
    began = time.perf_counter()
    for history in histories[:8]:
        generator.generate([history])
    alone = (time.perf_counter() - began) / len(histories[:8])
    began = time.perf_counter()
    generator.generate(histories)
    return {
        "system": artifact.card.system, "model_version": artifact.model_version,
        "ms_alone": round(1000 * alone, 1), "ms_in_batches": round(1000 * (time.perf_counter() - began) / users, 1),
        "batch": settings.llm.batch, "vectors": generated.vectors.shape[1],
        "numbers": int(generated.vectors[0].size), "finite": float(generated.finite.mean())}


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=64, help="number of synthetic users (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print raw figures instead of a table")
    args = parser.parse_args(argv)
    settings = load()
    artifacts = newest(Registry(settings.home))
    if not artifacts:
        raise SystemExit(f"no version with knowledge under {settings.home}; run `freshet fit --system lwgr` first")
    runs = []
    for artifact in artifacts.values():
        try:
            runs.append(measured(settings, artifact, args.users))
        except FreshetError as error:
            raise SystemExit(f"benchmarks.refresh.run: {error}") from None
    if args.json:
        print(orjson.dumps(runs, option=orjson.OPT_INDENT_2).decode())
        return
    print(f"{torch.get_num_threads()} threads, {settings.llm.name}, batches of {settings.llm.batch}\n")
    print("| system | ms per user, alone | ms per user, in batches | vectors | numbers |\n|---|--:|--:|--:|--:|")
    for run in runs:
        print("| {system} | {ms_alone} | {ms_in_batches} | {vectors} | {numbers} |".format(**run))


if __name__ == "__main__":
    main()
