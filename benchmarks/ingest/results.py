"""Write the figures as JSON and as a table in docs/benchmarks.md."""

from __future__ import annotations

import json
import statistics
from typing import Any

from benchmarks.ingest.measure import Run
from benchmarks.ingest.systems import ROOT, SYSTEMS
from benchmarks.pages import fill

JSON_PATH = ROOT / "benchmarks" / "results" / "ingest.json"
TABLE_PATH = ROOT / "docs" / "benchmarks.md"


def summarise(runs: dict[str, list[Run]]) -> dict[str, dict[str, Any]]:
    """Return median, minimum and maximum of events/s and events per CPU second per system, and ratios of medians."""
    out: dict[str, dict[str, Any]] = {}
    for name, group in runs.items():
        rates = [run.events / run.seconds for run in group]
        cpu_rates = [run.events / run.cpu_seconds for run in group]
        out[name] = {
            "events_per_s": round(statistics.median(rates)), "events_per_s_min": round(min(rates)),
            "events_per_s_max": round(max(rates)),
            "events_per_cpu_s": round(statistics.median(cpu_rates)), "events_per_cpu_s_min": round(min(cpu_rates)),
            "events_per_cpu_s_max": round(max(cpu_rates)),
            "rss_mib": round(max(run.rss_bytes for run in group) / 2**20),
            "runs": [{"events": run.events, "seconds": round(run.seconds, 3),
                      "cpu_seconds": round(run.cpu_seconds, 3)} for run in group]}
    for base in ("faust", "quix"):
        if base in out:
            for figures in out.values():
                figures[f"over_{base}"] = round(figures["events_per_s"] / out[base]["events_per_s"], 2)
    return out


def table(systems: dict[str, dict[str, Any]]) -> str:
    """Return the comparison as a Markdown table."""
    lines = ["| system | state | events/s (min–max) | events per CPU second | RSS | × Faust | × Quix |",
             "|---|---|--:|--:|--:|--:|--:|"]
    for system in SYSTEMS:
        if system.name not in systems:
            continue
        row = systems[system.name]
        lines.append(
            f"| {system.title} | {system.state} | {row['events_per_s']:,} ({row['events_per_s_min']:,}–"
            f"{row['events_per_s_max']:,}) | {row['events_per_cpu_s']:,} | {row['rss_mib']} MiB | "
            f"{row.get('over_faust', '–')} | {row.get('over_quix', '–')} |")
    return "\n".join(lines)


def section(result: dict[str, Any]) -> str:
    """Return the generated part of docs/benchmarks.md."""
    work, machine = result["workload"], result["machine"]
    pinned = "one core each, the broker on the others" if result["pinned"] else "all cores, not pinned"
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return (
        f"{table(result['systems'])}\n\nMedian of {result['repeats']} interleaved runs; {work['events']:,} events of "
        f"{work['users']:,} users and {work['items']:,} items on {work['partitions']} partitions (idiomatic Faust: its "
        f"first {result['prefix']:,}); broker: {result['broker']}; {pinned}; {machine['cpus']} CPUs, Python "
        f"{machine['python']}, {machine['system']}; {versions}; revision {result['revision']}. States of "
        f"{result['checked_users']} users were equal in all systems.")


def write(result: dict[str, Any]) -> None:
    """Save the result and update the table in the documentation."""
    JSON_PATH.parent.mkdir(exist_ok=True)
    JSON_PATH.write_text(json.dumps(result, indent=1) + "\n")
    fill(TABLE_PATH, "ingest", section(result))
