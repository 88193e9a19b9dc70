"""Check the newest demo report: `python -m tests.system.report RUNS --events N`. CI runs it after `make demo`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import orjson


def problems(report: dict[str, Any], events: int) -> list[str]:
    """Return what is missing or wrong in a report; [] = valid."""
    messages = []

    def check(condition: bool, text: str) -> None:
        if not condition:
            messages.append(text)

    check(report["events"] == events, f"events: {report['events']}, produced {events}")
    check(report["recommendations"] > 0, "no recommendations")
    check(report["dead_letters"] == 0, f"{report['dead_letters']} dead letters")
    check(report["events_per_s"] > 0, "events_per_s")
    check(set(report["refreshes"]) == {"cold_start", "drift", "contradiction", "stale"}, "reasons of refreshes")
    check(report["refreshes"]["cold_start"] > 0, "no cold start")
    check(report["llm_calls"] >= sum(report["refreshes"].values()) > 0, "llm_calls below refreshes")
    for name in ("freshness_s", "event_to_recommendation_s"):
        p50, p99 = report[name]["p50"], report[name]["p99"]
        check(0 < p50 <= p99 < 60, f"{name}: {p50}, {p99}")
    check(set(report["stories"]) == {"drift", "contradiction", "cold_start"}, "kinds of stories")
    story = report["stories"]["cold_start"]
    check(bool(story["rows"] and story["turn"]["user"]) if story else not report["mu"]["n"], "no story of a new user")
    drifted = report["stories"]["drift"]
    check(drifted is None or len(drifted["pulses"]) > 0, "the changelog says nothing of who drifted")
    check((report["cost"]["total"]["generations"] or 0) > 0, f"cost: {report['cost']}")
    quality = report["quality"]
    check(0 < quality["n"] <= events, f"quality.n: {quality['n']}")
    for side in ("reference", "fused"):
        recall, ndcg = quality[side]["recall_at_10"], quality[side]["ndcg_at_10"]
        check(0 < ndcg <= recall <= 1, f"quality.{side}: {recall}, {ndcg}")
    low, high = quality["ndcg_gain_interval"]
    gain = quality["fused"]["ndcg_at_10"] - quality["reference"]["ndcg_at_10"]
    check(low <= gain <= high, f"ndcg_gain_interval {low}..{high} does not contain the gain {gain}")
    check(report["wall_s"] > 0, "wall_s")
    check(0 < report["peak_rss_bytes"] <= 6 * 2**30, f"peak_rss_bytes: {report['peak_rss_bytes']}")
    check(bool(report["versions"]), "versions")
    return messages


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--events", type=int, required=True)
    arguments = parser.parse_args()
    folder = max((path.parent for path in arguments.runs.glob("*/report.json")), default=None)
    if folder is None:
        print(f"no report under {arguments.runs}")
        return 1
    messages = problems(orjson.loads((folder / "report.json").read_bytes()), arguments.events)
    page = (folder / "report.html").read_text()
    for external in ('src="http', 'href="http', "src='http", "@import"):
        if external in page:
            messages.append(f"report.html is not self-contained: {external}")
    print("\n".join(messages) or f"{folder}: valid")
    return bool(messages)


if __name__ == "__main__":
    sys.exit(main())
