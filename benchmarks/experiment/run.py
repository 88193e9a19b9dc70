"""Error rate and width of an experiment's confidence interval when it is checked after every user.

    python -m benchmarks.experiment.run [--quick]

Simulates users without an effect of the arm and counts how often an interval excludes zero at any check. Compares its
half-width with that of an interval valid for a single check, and measures how many users it takes to detect a true
uplift. Writes benchmarks/results/experiment.json and docs/experiments.svg.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from models.measuring.uplift import confidence, log_wealth, pseudo_outcomes, users_needed
from workers.training.revision import revision

ROOT = Path(__file__).parents[2]
ALPHA = 0.05
SHARES = (0.1, 0.5)
BURN_IN = 300  # minimum number of users for methods based on the central limit theorem
METHODS = {
    "betting": "confidence sequence of `freshet experiment`",
    "asymptotic": "asymptotic confidence sequence, from the first user on",
    "asymptotic_later": f"the same, from user {BURN_IN} on",
    "fixed": f"fixed-sample interval over users, checked from user {BURN_IN} on",
    "events": f"fixed-sample interval over events, checked from user {BURN_IN} on",
}
LABELS = {"betting": "freshet experiment", "asymptotic": "asymptotic", "asymptotic_later": f"asymptotic from {BURN_IN}",
          "fixed": "fixed-sample, users", "events": "fixed-sample, events"}
Array = NDArray[np.float64]


def population(
    rng: np.random.Generator, shape: tuple[int, ...], mean: float = 0.03,
) -> tuple[NDArray[np.int64], NDArray[np.int64], Array]:
    """Return hits, events and the value of a hit for very different users; a reward is hits/events × value.

    A user has 1 to 200 events (Zipf). All have the user's own probability of a hit (Beta, standard deviation several
    times the mean) and the same NDCG per hit, so a user's events are as dependent as possible. Most users never take a
    recommendation; a few do so often.
    """
    chance = rng.beta(0.3, 0.3 / mean - 0.3, size=shape)
    events = np.minimum(rng.zipf(1.8, size=shape), 200)
    return rng.binomial(events, chance), events, rng.uniform(0.29, 1.0, size=shape)


def first_errors(rng: np.random.Generator, share: float, users: int) -> dict[str, int]:
    """Return per method after how many users its interval first excludes zero in an experiment without an effect."""
    hits, events, worth = population(rng, (users,))
    rewards, control = hits / events * worth, rng.random(users) < share
    phi = pseudo_outcomes(rewards, control, share)
    n = np.arange(1, users + 1)
    wealth = np.maximum(*(log_wealth(phi, 0.0, share, side) for side in (1, -1)))
    mean = np.cumsum(phi) / n
    variance = np.maximum(np.cumsum(phi**2) / n - mean**2, 1e-12)
    out = {"betting": wealth >= np.log(2 / ALPHA), "asymptotic": np.abs(mean) > _asymptotic(n, variance)}
    out["asymptotic_later"] = out["asymptotic"] & (n >= BURN_IN)
    ones = np.ones(users)
    out["fixed"] = (n >= BURN_IN) & (_z(ones, rewards, rewards**2, control) > 1.96)
    out["events"] = (n >= BURN_IN) & (_z(events, hits * worth, hits * worth**2, control) > 1.96)
    return {name: int(n[wrong][0]) if wrong.any() else users + 1 for name, wrong in out.items()}


def _asymptotic(n: NDArray[np.int64], variance: Array) -> Array:
    """Return the half-width of Waudby-Smith et al. 2024, Theorem 2.2, with ρ optimal at 1,000 users (their appendix).

    ρ must not depend on the data. Here it uses the final variance, which a real experiment does not know beforehand.
    """
    rho2 = (-2 * np.log(ALPHA) + np.log(1 - 2 * np.log(ALPHA))) / (1000 * variance[-1])
    t = n * variance * rho2 + 1
    return np.sqrt(2 * t / (n**2 * rho2) * np.log(np.sqrt(t) / ALPHA))


def _z(counts: Any, sums: Array, squares: Array, control: NDArray[np.bool_]) -> Array:
    """Return |z| of treatment − control after each user, from the number, sum and sum of squares of users' values."""
    arms = []
    with np.errstate(all="ignore"):
        for arm in (~control, control):
            number = np.cumsum(counts * arm)
            mean = np.cumsum(sums * arm) / number
            arms.append((mean, (np.cumsum(squares * arm) / number - mean**2) / number))
        (mean_1, square_1), (mean_0, square_0) = arms
        return np.nan_to_num(np.abs(mean_1 - mean_0) / np.sqrt(square_1 + square_0))


def widths(rng: np.random.Generator, share: float, sizes: list[int], runs: int) -> list[dict[str, float]]:
    """Return per number of users the mean distances of both bounds from the uplift and the fixed-sample half-width."""
    rows = []
    for _ in range(runs):
        hits, events, worth = population(rng, (max(sizes),))
        rewards, control = hits / events * worth, rng.random(max(sizes)) < share
        for now in confidence(rewards, control, share, at=np.array(sizes)):
            arm, part = control[:now.users], rewards[:now.users]
            once = 1.96 * (part[arm].var() / arm.sum() + part[~arm].var() / (~arm).sum()) ** 0.5
            uplift = now.uplift if now.uplift is not None else 0.0
            rows.append((now.users, uplift - now.low, now.high - uplift, once))
    table = np.array(rows).reshape(runs, len(sizes), 4).mean(axis=0)
    return [{"users": int(n), "below": low, "above": high, "fixed": once} for n, low, high, once in table.tolist()]


def detection(
    rng: np.random.Generator, share: float, uplifts: list[float], users: int, runs: int,
) -> list[dict[str, Any]]:
    """Return the median number of users until a true uplift is detected (None: half never are), and the forecast."""
    out = []
    for uplift in uplifts:
        seen, forecasts = [], []
        for _ in range(runs):
            hits, events, worth = population(rng, (users,))
            rewards, control = hits / events * worth, rng.random(users) < share
            forecasts.append(users_needed(pseudo_outcomes(rewards[:1000], control[:1000], share), share, uplift))
            lucky = ~control & (rng.random(users) < uplift / (1 - rewards.mean()))
            phi = pseudo_outcomes(np.where(lucky, 1.0, rewards), control, share)
            crossed = log_wealth(phi, 0.0, share, 1) >= np.log(2 / ALPHA)
            seen.append(int(crossed.argmax()) + 1 if crossed.any() else users + 1)
        median = float(np.median(seen))
        out.append({"uplift": uplift, "median_users": median if median <= users else None,
                    "forecast": float(np.median(forecasts)), "runs": runs})
    return out


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw error rates and half-widths against the number of users."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams["svg.hashsalt"] = "freshet"  # reproducible file
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    colours = dict(zip(METHODS, ("#0b6e99", "#f2a541", "#c98a2b", "#7b8794", "#d1495b"), strict=True))
    part = result["shares"][0]
    n = np.arange(10, result["users"] + 1)
    for name, errors in part["first_error"].items():
        share = np.searchsorted(np.sort(errors), n, side="right") / len(errors)
        left.plot(n, share, color=colours[name], label=LABELS[name])
    left.axhline(ALPHA, color="black", linewidth=0.8, linestyle=":")
    left.set(xscale="log", xlabel="users, checked after each", ylim=(0, None),
             ylabel="share of wrong experiments", title=f"no effect, {part['share']:.0%} control (dotted: 5%)")
    left.legend(fontsize=8)
    for part, style in zip(result["shares"], ("-", "--"), strict=True):
        users = [row["users"] for row in part["widths"]]
        for key, label, colour in (("below", "lower half of the sequence", "#0b6e99"),
                                   ("above", "upper half", "#4aa3c7"), ("fixed", "single check", "#7b8794")):
            right.plot(users, [row[key] for row in part["widths"]], style, color=colour,
                       label=f"{label}, {part['share']:.0%} control")
    right.set(xscale="log", yscale="log", xlabel="users", ylabel="half-width, NDCG@10", title="width")
    right.legend(fontsize=7)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="takes seconds instead of minutes, writes nothing")
    parser.add_argument("--seed", type=int, default=1)
    quick = (arguments := parser.parse_args()).quick
    runs, users = (100, 1000) if quick else (2000, 3000)
    sizes = [300, 1000] if quick else [300, 1000, 3000, 10_000, 20_000]
    rng = np.random.default_rng(arguments.seed)
    result: dict[str, Any] = {"alpha": ALPHA, "runs": runs, "users": users, "seed": arguments.seed,
                              "revision": revision(), "shares": []}
    for share in SHARES:
        errors = [first_errors(rng, share, users) for _ in track(range(runs), f"{share:.0%} control")]
        first = {name: [run[name] for run in errors] for name in METHODS}
        result["shares"].append({
            "share": share, "error": {name: float(np.mean(np.array(at) <= users)) for name, at in first.items()},
            "first_error": first, "widths": widths(rng, share, sizes, 2 if quick else 10),
            "detection": detection(rng, share, [0.05] if quick else [0.01, 0.02, 0.05], 5000 if quick else 40_000,
                                   4 if quick else 20)})
    for part in result["shares"]:
        print(f"\n{part['share']:.0%} control, no effect, {runs:,} experiments: wrong at any of {users:,} checks")
        for name, title in METHODS.items():
            print(f"  {part['error'][name]:6.1%}  {title}")
        print("  half-width at users: " + ", ".join(
            f"{row['users']:,}: −{row['below']:.4f} +{row['above']:.4f} (single check ±{row['fixed']:.4f})"
            for row in part["widths"]))
        for row in part["detection"]:
            detected = "not detected" if row["median_users"] is None else (
                f"detected after {row['median_users']:,.0f} users")
            print(f"  uplift {row['uplift']:+.2f}: {detected} (median), forecast {row['forecast']:,.0f}")
    if not quick:
        draw(result, ROOT / "docs" / "experiments.svg")
        for part in result["shares"]:
            del part["first_error"]
        (ROOT / "benchmarks" / "results" / "experiment.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
