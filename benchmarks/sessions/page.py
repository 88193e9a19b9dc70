"""The tables of docs/sessions.md."""

from __future__ import annotations

from typing import Any


def tables(result: dict[str, Any]) -> str:
    """Return all tables as Markdown."""
    moments, reference, chosen, guard = (result[name] for name in ("moments", "reference", "chosen", "guard"))
    fresh = result["fresh_above_stale"]
    weights = ", ".join(f"{name} {value:g}" for name, value in chosen["weights"].items())
    lines = [
        f"{moments['training']:,} `training`, {moments['first']:,} `first` and {moments['later']:,} `later` moments; "
        f"revision {result['revision']}. Weight of the closed form {reference['gain']:g}, temperature "
        f"{reference['temperature']:g}; the text is used as “{chosen['idea']}” ({weights}), temperature "
        f"{chosen['temperature']:g}. Trust radius {guard['epsilon']:g} (calibration chose "
        f"{guard['calibrated_epsilon']:g}), B {guard['margin_bound']:.3f} nats, h "
        f"{guard['drift_threshold']:.2f}, stale after {guard['ttl_days']:.0f} days.", ""]
    for kind, rows in result["rows"].items():
        lines += [f"**At `{kind}` moments**", "",
                  "| text | NDCG@10 | Recall@10 | against none (95%) | | whole catalogue (95%) |",
                  "|---|--:|--:|--:|--:|--:|"]
        lines += [f"| {row['row']} | {row['ndcg_at_10']:.4f} | {row['recall_at_10']:.4f} | {difference(row['gain'])} | "
                  f"{row['gain']['share']:+.1%} | {difference(row['whole'])} |" for row in rows]
        lines += [""]
    lines += [f"Fresh against stale, the same moments: {difference(fresh)}, {fresh['share']:+.1%}; over the whole "
              f"catalogue {difference(result['fresh_above_stale_whole'])}.", "",
              "**How a text is used**, on the `training` moments. *Inside* is the gain in NDCG@10 on the moments the "
              "parameters were chosen on; *crossed* where each tenth of them uses what the other nine chose; *whole* "
              "the same in NDCG over the whole catalogue, which decides.", "",
              "| idea | inside | crossed (95%) | whole (95%) | parameters |", "|---|--:|--:|--:|---|"]
    lines += [f"| {row['idea']} | {row['inside']:+.4f} | {difference(row['crossed'])} | {difference(row['whole'])} | "
              + ", ".join(f"{name} {value:.2g}" for name, value in row["weights"].items()) + " |"
              for row in result["ideas"]]
    lines += ["", "The same ideas later, against none. Nothing was chosen by these figures.", "",
              "| idea | `first`, fresh | `later`, fresh | `later`, stale | fresh against stale | whole catalogue |",
              "|---|--:|--:|--:|--:|--:|"]
    lines += [f"| {row['idea']} | " + " | ".join(
        difference(row[name]) for name in ("first", "fresh", "stale", "difference", "whole")) + " |"
        for row in result["every_idea"]]
    lines += ["", f"**When to refresh**: {result['users']:,} users from their first moment to their last, the gain at "
              f"{moments['later']:,} later moments. Calls come after the text of the first moment.", "",
              "| policy | calls | moments with a fresh text | gain (95%) | within judge and region (95%) |",
              "|---|--:|--:|--:|--:|"]
    lines += [f"| {row['policy']} | {row['calls']:,} | {row['fresh']:.0%} | {difference(row['gain'])} | "
              f"{difference(row['guarded'])} |" for row in result["policies"]]
    lines += ["", "**Which trigger foresees that the old text is useless?** Just before a later session, with the text "
              "of the first moment: rank correlation with what the text loses there, and how often a moment at which "
              "it harms has the larger signal (.5 = chance).", "", "| trigger | rank correlation (95%) | AUC (95%) |",
              "|---|--:|--:|"]
    lines += [f"| {name} | {row['rank']:+.3f} [{row['rank_low']:+.3f}, {row['rank_high']:+.3f}] | "
              f"{row['auc']:.3f} [{row['auc_low']:.3f}, {row['auc_high']:.3f}] |"
              for name, row in result["foresight"].items()]
    return "\n".join(lines)


def difference(found: dict[str, float]) -> str:
    """Return a difference with its interval."""
    return f"{found['mean']:+.4f} [{found['low']:+.4f}, {found['high']:+.4f}]"
