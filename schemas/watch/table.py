"""The one table of metrics. Instruments, `/metrics` and docs/metrics.md come from it.

A name and its labels are a promise: dashboards and alerts of others use them. No label holds a user, an item, a text or
anything else that grows with traffic. A metric with `read` is not counted a second time: its values are the counters
that the role keeps for `run/ROLE.json` anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from schemas.messages import Fallback, RefreshReason
from schemas.watch.activities import ACTIVITIES

Kind = Literal["counter", "gauge", "histogram"]
Samples = Iterable[tuple[tuple[str, ...], float]]  # label values, value
ALL = ("streams", "knowledge", "ranking", "guard", "alignment", "console")
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
FAST_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0, 5.0)
LONG_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
AGES = (1.0, 10.0, 60.0, 600.0, 3600.0, 6 * 3600.0, 86_400.0, 3 * 86_400.0, 7 * 86_400.0, 30 * 86_400.0)
NATS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
MARGINS = (-3.0, -1.0, -0.3, -0.1, -0.03, 0.0, 0.03, 0.1, 0.3, 1.0, 3.0)
SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 2048.0, 10_000.0)


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric.

    Args:
        name: as scraped; a histogram's series also end in `_bucket`, `_sum`, `_count`.
        roles: who has it.
        help: one line, without a full stop.
        labels: names of labels; `values` says what they may hold.
        values: label → the values it may have, where they are a fixed list; else in words.
        buckets: upper bounds of a histogram, without +Inf.
        read: takes its samples from a role's counters; None = an instrument of its own.
    """

    name: str
    kind: Kind
    roles: tuple[str, ...]
    help: str
    labels: tuple[str, ...] = ()
    values: Mapping[str, tuple[str, ...] | str] = field(default_factory=dict)
    buckets: tuple[float, ...] = ()
    read: Callable[[Mapping[str, Any]], Samples] | None = None


def _one(key: str) -> Callable[[Mapping[str, Any]], Samples]:
    """Read one counter."""
    return lambda found: [((), found[key])] if found.get(key) is not None else []


def _of_role(key: str) -> Callable[[Mapping[str, Any]], Samples]:
    """Read one counter that every role has."""
    return lambda found: [((found["role"],), found[key])] if found.get(key) is not None else []


def _each(**keys: str) -> Callable[[Mapping[str, Any]], Samples]:
    """Read several counters as one metric: label value → counter."""
    return lambda found: [((value,), found[key]) for value, key in keys.items() if key in found]


def _dead_letters(found: Mapping[str, Any]) -> Samples:
    return [((found["role"], kind), number) for kind, number in dict(found["dead_letters_by"]).items()]


def _events(found: Mapping[str, Any]) -> Samples:
    if "events" in found:
        yield ("folded",), found["events"] - found["late"] - found.get("apart", 0)
        for outcome, key in (("late", "late"), ("duplicate", "duplicates"), ("too_late", "too_late"),
                             ("stray", "strays"), ("apart", "apart")):
            yield (outcome,), found.get(key, 0)


def _nested(key: str) -> Callable[[Mapping[str, Any]], Samples]:
    """Read counters by two labels: {first: {second: number}}."""
    return lambda found: [((first, second), number) for first, some in dict(found.get(key, {})).items()
                          for second, number in dict(some).items()]


def _by(key: str) -> Callable[[Mapping[str, Any]], Samples]:
    """Read counters by one label: {value: number}."""
    return lambda found: [((value,), number) for value, number in dict(found.get(key, {})).items()]


def _lag(field: str) -> Callable[[Mapping[str, Any]], Samples]:
    return lambda found: [((found["role"], topic, partition), lag[field])
                          for topic, parts in found["partitions"].items() for partition, lag in parts.items()]


def _activities(found: Mapping[str, Any]) -> Samples:
    return [((found["role"], activity), seconds) for activity, seconds in found["seconds"].items()]


def _model(found: Mapping[str, Any]) -> Samples:
    if version := found.get("model_version"):
        base, _, adapter = str(version).partition("+")
        yield (found["role"], base, adapter), 1.0


def _waits(found: Mapping[str, Any]) -> Samples:
    return [((found["role"], what), float(found["waits_for"] == what)) for what in WAITS]


def _wealth(found: Mapping[str, Any]) -> Samples:
    if "versions" in found:
        yield (), max((held["log_wealth"] for held in found["versions"].values()), default=0.0)


def _harmful(found: Mapping[str, Any]) -> Samples:
    if "versions" in found:
        yield (), sum(held["harmful"] for held in found["versions"].values())


WAITS = ("broker", "store", "model", "samples", "schema registry", "port")
REASONS: tuple[str, ...] = get_args(RefreshReason)
FALLBACKS: tuple[str, ...] = get_args(Fallback)
OUTCOMES = ("written", "already_held", "superseded", "overtaken", "rejected", "not_needed")
STATES = ("ok", "starting", "waiting", "stalled", "crashed", "hung")
_ROLE = {"role": ALL}
_DEAD = ("unreadable", "future", "failed", "rejected", "too_large")
_STORE_CALLS = ("read", "write", "delete", "search", "count")

METRICS: tuple[Metric, ...] = (
    # every role
    Metric("freshet_ready", "gauge", ALL, "1 while the role has its partitions and states", ("role",), _ROLE,
           read=lambda found: [((found["role"],), float(bool(found["ready_at"]) and "ended" not in found))]),
    Metric("freshet_waiting", "gauge", ALL, "1 while the role waits for this", ("role", "for"),
           _ROLE | {"for": WAITS}, read=_waits),
    Metric("freshet_records_processed_total", "counter", ALL, "records whose effects are durable", ("role",), _ROLE,
           read=_of_role("processed")),
    Metric("freshet_messages_produced_total", "counter", ALL, "messages confirmed by the broker", ("role",), _ROLE,
           read=_of_role("produced")),
    Metric("freshet_dead_letters_total", "counter", ALL, "records and messages that could not be used",
           ("role", "reason"), _ROLE | {"reason": _DEAD}, read=_dead_letters),
    Metric("freshet_lag_records", "gauge", ALL, "records that wait; streams: that are not fetched yet",
           ("role", "topic", "partition"), _ROLE | {"topic": "Freshet's topics", "partition": "numbers"},
           read=_lag("lag")),
    Metric("freshet_lag_seconds", "gauge", ALL, "age of the oldest record that waits, 0 = none does",
           ("role", "topic", "partition"), _ROLE | {"topic": "Freshet's topics", "partition": "numbers"},
           read=_lag("lag_s")),
    Metric("freshet_consumer_seconds_total", "counter", ALL,
           "where the consumer's seconds go; the rates of all activities add up to 1", ("role", "activity"),
           _ROLE | {"activity": ACTIVITIES}, read=_activities),
    Metric("freshet_batch_records", "histogram", ALL, "records of a batch", ("role",), _ROLE, SIZES),
    Metric("freshet_batch_seconds", "histogram", ALL, "from a batch in hand to its offsets committed; streams: to its "
           "effects durable", ("role",), _ROLE, LONG_SECONDS),
    Metric("freshet_stage_seconds", "histogram", ("streams", "knowledge", "ranking"),
           "time of one stage of a batch, by this process's monotonic clock", ("role", "stage"),
           {"role": ("streams", "knowledge", "ranking"),
            "stage": ("prepare", "states", "messages", "commit", "look_up", "generate", "store", "rank", "judge",
                      "recommend")}, SECONDS),
    Metric("freshet_model_info", "gauge", ("streams", "knowledge", "ranking", "alignment"),
           "1 for the model version in use and its adapter", ("role", "model_version", "adapter"),
           _ROLE | {"model_version": "the version in use", "adapter": "its adapter, empty = none"}, read=_model),
    Metric("freshet_model_waiting", "gauge", ("knowledge", "ranking", "guard", "alignment"),
           "1 while a version that should be in use cannot be loaded", ("role",), _ROLE,
           read=lambda found: [((found["role"],), float(bool(found["model_waiting"])))]
           if "model_waiting" in found else []),
    # streams
    Metric("freshet_events_total", "counter", ("streams",),
           "behaviour events by what became of them (apart = against an item or neutral, no evidence of interest); "
           "dead ones are in freshet_dead_letters_total", ("outcome",),
           {"outcome": ("folded", "late", "duplicate", "too_late", "stray", "apart")}, read=_events),
    Metric("freshet_unknown_event_types_total", "counter", ("streams",),
           "events whose type has no meaning (`events.meanings`); they count as interest", read=_one("unknown_types")),
    Metric("freshet_unknown_items_total", "counter", ("streams", "ranking"),
           "items of events (streams) and histories (ranking) that the model does not know", ("role",),
           {"role": ("streams", "ranking")}, read=_of_role("unknown_items")),
    Metric("freshet_unknown_users_total", "counter", ("streams",), "judgements and updates of users without a state",
           read=_one("unknown_users")),
    Metric("freshet_erasures_total", "counter", ("streams",),
           "erasures of users (user = asked for, state = of these, with a state) and records dropped because they were "
           "sent before one (record)", ("what",), {"what": ("user", "state", "record")},
           read=_each(user="erased", state="erased_states", record="from_before")),
    Metric("freshet_erased_knowledge_total", "counter", ("knowledge",), "users whose knowledge was erased",
           read=_one("erased")),
    Metric("freshet_offset_resets_total", "counter", ("streams",),
           "committed offsets that were no more good, by why", ("reason",),
           {"reason": ("expired", "cut", "recreated", "forgotten")},
           read=_each(expired="offsets_expired", cut="offsets_cut", recreated="offsets_recreated",
                      forgotten="offsets_forgotten")),
    Metric("freshet_offsets_missed_total", "counter", ("streams",), "offsets deleted before they were read",
           read=_one("offsets_missed")),
    Metric("freshet_requests_sent_total", "counter", ("streams",), "what streams asked of other roles", ("to",),
           {"to": ("ranking", "knowledge", "alignment")},
           read=_each(ranking="ranking_requests", knowledge="knowledge_requests", alignment="alignment_samples")),
    Metric("freshet_refreshes_requested_total", "counter", ("streams",), "knowledge requests by reason", ("reason",),
           {"reason": REASONS}, read=_by("refreshes_requested")),
    Metric("freshet_refreshes_forced_total", "counter", ("streams",),
           "refreshes made whatever their price, because a user had waited too long", read=_one("refreshes_forced")),
    Metric("freshet_refresh_queue", "gauge", ("streams",), "knowledge requests of this process without an answer",
           read=_one("refresh_queue")),
    Metric("freshet_refresh_queue_target", "gauge", ("streams",), "requests that the workers answer in 30 s",
           read=_one("refresh_queue_target")),
    Metric("freshet_refresh_price", "gauge", ("streams",),
           "μ: expected gain that a refresh must exceed, in bounds of the judge per event", ("of",),
           {"of": ("budget", "queue", "both")}, read=_by("refresh_price")),
    Metric("freshet_contradictions_total", "counter", ("streams",), "users whose knowledge the judge contradicted",
           read=_one("contradictions")),
    # knowledge
    Metric("freshet_refreshes_total", "counter", ("knowledge",), "knowledge requests by reason and outcome",
           ("reason", "outcome"), {"reason": REASONS, "outcome": OUTCOMES}, read=_nested("refreshes")),
    Metric("freshet_knowledge_freshness_seconds", "histogram", ("knowledge",),
           "from the broker's time of the event that asked for knowledge until it can be read", ("reason",),
           {"reason": REASONS}, LONG_SECONDS),
    Metric("freshet_llm_calls_total", "counter", ("knowledge",), "forward passes of the language model",
           read=_one("llm_calls")),
    Metric("freshet_llm_tokens_total", "counter", ("knowledge",), "tokens it computed, padding included, states that "
           "were cached not", read=_one("llm_tokens")),
    Metric("freshet_llm_users_total", "counter", ("knowledge",), "users whose knowledge it generated",
           read=_one("generated")),
    Metric("freshet_llm_seconds_total", "counter", ("knowledge",), "time of generating", read=_one("generate_s")),
    Metric("freshet_llm_cost_total", "counter", ("knowledge",),
           "that time at FRESHET_METRICS_COST_PER_HOUR, in its currency", read=_one("cost")),
    Metric("freshet_llm_batch_users", "histogram", ("knowledge",), "users of one generation", (), {}, SIZES),
    # ranking
    Metric("freshet_recommendations_total", "counter", ("ranking",),
           "lists by how they were made: with knowledge (fused), or why without", ("made",),
           {"made": ("fused", *FALLBACKS)}, read=_each(**{made: made for made in ("fused", *FALLBACKS)})),
    Metric("freshet_lists_changed_total", "counter", ("ranking",),
           "lists made with knowledge that differ from what behaviour alone would have shown", read=_one("changed")),
    Metric("freshet_lists_ruled_total", "counter", ("ranking",), "lists that rules of the shop changed",
           read=_one("ruled")),
    Metric("freshet_requests_superseded_total", "counter", ("ranking",),
           "ranking requests answered by a newer one of the same user", read=_one("superseded")),
    Metric("freshet_repairs_total", "counter", ("ranking",), "requests to make damaged or missing knowledge again",
           read=_one("repairs")),
    Metric("freshet_recommendation_seconds", "histogram", ("ranking",),
           "from the broker's time of the record that caused a list until it was ranked", ("reason",),
           {"reason": ("event", "knowledge", "seen")}, LONG_SECONDS),
    Metric("freshet_knowledge_age_seconds", "histogram", ("ranking",),
           "event time between the newest event and the newest one in the knowledge used", (), {}, AGES),
    Metric("freshet_knowledge_behind_events", "histogram", ("ranking",), "events that the knowledge used lacks", (), {},
           (0.0, *SIZES[:9])),
    Metric("freshet_margin_nats", "histogram", ("ranking",),
           "log p with knowledge − log p without, of events that followed", (), {}, MARGINS),
    Metric("freshet_margin_gain_nats_total", "counter", ("ranking",), "sum of the margins above 0",
           read=_one("margin_gain")),
    Metric("freshet_margin_loss_nats_total", "counter", ("ranking",), "sum of the margins below 0, without their sign",
           read=_one("margin_loss")),
    Metric("freshet_trust_ratio", "histogram", ("ranking",), "trust in a user's knowledge where it was used", (), {},
           (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)),
    Metric("freshet_kl_nats", "histogram", ("ranking",), "KL(p ‖ p_ref) spent on a list made with knowledge", (), {},
           NATS),
    Metric("freshet_loss_bound_nats", "histogram", ("ranking",),
           "ℓ: nats that any item may lose in a list made with knowledge", (), {}, NATS),
    Metric("freshet_bound_reached_total", "counter", ("ranking",), "lists made with knowledge whose ℓ is spent",
           read=_one("bound_reached")),
    Metric("freshet_cache_lookups_total", "counter", ("ranking",), "look-ups of users' knowledge in the cache",
           ("result",),
           {"result": ("hit", "miss")}, read=_each(hit="cache_hits", miss="cache_misses")),
    Metric("freshet_store_available", "gauge", ("ranking",), "1 while the knowledge store answers",
           read=_one("store_available")),
    # knowledge and ranking
    Metric("freshet_store_request_seconds", "histogram", ("knowledge", "ranking"), "time of one request to the store",
           ("operation",), {"operation": _STORE_CALLS}, SECONDS),
    Metric("freshet_store_errors_total", "counter", ("knowledge", "ranking"), "requests to the store that failed",
           ("operation", "error"), {"operation": _STORE_CALLS, "error": ("unavailable", "refused", "other")}),
    Metric("freshet_gpu_memory_bytes", "gauge", ("knowledge", "ranking", "alignment"),
           "memory of a GPU that this process uses, and has reserved", ("device", "use"),
           {"device": "cuda:0, …", "use": ("allocated", "reserved")}),
    # guard
    Metric("freshet_guard_margins_total", "counter", ("guard",), "margins that the guard has pooled",
           read=lambda found: _one("margins")(found) if found["role"] == "guard" else []),
    Metric("freshet_guard_log_wealth", "gauge", ("guard",), "evidence against the worst version, log of a bet's wealth",
           read=_wealth),
    Metric("freshet_guard_harmful_versions", "gauge", ("guard",), "versions found to do harm", read=_harmful),
    Metric("freshet_guard_rollbacks_total", "counter", ("guard",), "rollbacks by whether they worked", ("result",),
           {"result": ("done", "failed")}, read=_each(done="rollbacks", failed="rollbacks_failed")),
    # alignment
    Metric("freshet_alignment_attempts_total", "counter", ("alignment",), "adapters trained, by the verdict",
           ("verdict",), {"verdict": ("published", "rejected")},
           read=lambda found: _each(published="published", rejected="rejected")(found)
           if found["role"] == "alignment" else []),
    Metric("freshet_alignment_samples", "gauge", ("alignment",), "contradicted users gathered", read=_one("gathered")),
    # console
    Metric("freshet_console_request_seconds", "histogram", ("console",), "from a request to the end of its answer",
           ("of", "status"), {"of": ("users", "items", "health", "openapi", "pages"),
                              "status": ("2xx", "3xx", "4xx", "5xx")}, FAST_SECONDS),
    Metric("freshet_views_caught_up", "gauge", ("console",),
           "1 once the topics are read to where they ended at the start", read=_one("caught_up")),
    Metric("freshet_views_unreadable_total", "counter", ("console",), "records that are not what their topic says",
           ("topic",), {"topic": "Freshet's topics"}, read=_by("unreadable")),
    # supervisor
    Metric("freshet_role_up", "gauge", ("supervisor",), "1 while the role's process runs", ("role",),
           {"role": (*ALL, "store")}),
    Metric("freshet_role_ready", "gauge", ("supervisor",), "1 while the role is ready", ("role",),
           {"role": (*ALL, "store")}),
    Metric("freshet_role_restarts_total", "counter", ("supervisor",), "times this supervisor has started it again",
           ("role",), {"role": (*ALL, "store")}),
    Metric("freshet_role_failures", "gauge", ("supervisor",), "failures in a row", ("role",),
           {"role": (*ALL, "store")}),
    Metric("freshet_health", "gauge", ("supervisor",), "1 for the state of the stack", ("state",), {"state": STATES}),
)
BY_NAME = {metric.name: metric for metric in METRICS}
# Of the process, by prometheus-client, on Linux.
PROCESS = {
    "process_resident_memory_bytes": "memory in use", "process_cpu_seconds_total": "time on the processor",
    "process_open_fds": "open files and connections", "process_start_time_seconds": "start, seconds since 1970"}


def series(metric: Metric) -> tuple[str, ...]:
    """Return the names under which a metric's values are stored. A sum that may fall is no counter: it is left out."""
    if metric.kind == "histogram":
        ends = ("bucket", "count") if metric.buckets[0] < 0 else ("bucket", "sum", "count")
        return tuple(f"{metric.name}_{end}" for end in ends)
    return (metric.name,)
