"""The one settings object: defaults, then a TOML file, then secrets from files, then the environment.

`freshet.toml` (or the file `FRESHET_CONFIG` names) has one table per section; `FRESHET_<SECTION>_<FIELD>` overrides a
field, e.g. `FRESHET_KAFKA_BOOTSTRAP=kafka:9092`. For a secret, the same name with `_FILE` at its end names a file that
holds it. An unknown section, field or value is an error that names it.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass

from schemas.errors import SettingsError
from schemas.events import describe
from schemas.settings.console import ConsoleSettings
from schemas.settings.kafka import KafkaSettings
from schemas.settings.ranking import Evidence, RankingSettings
from schemas.settings.sections import (
    STRICT,
    AlignmentSettings,
    Envelope,
    EventField,
    EventSettings,
    ExperimentSettings,
    FitSettings,
    HealthSettings,
    ItemSettings,
    LlmSettings,
    LogSettings,
    MetricsSettings,
    QdrantSettings,
    RefreshSettings,
    RegistrySettings,
    StateSettings,
    TracingSettings,
    WatchdogSettings,
    WriterSettings,
)

__all__ = [
    "AlignmentSettings", "ConsoleSettings", "Envelope", "EventField", "EventSettings", "Evidence",
    "ExperimentSettings", "FitSettings", "HealthSettings",
    "ItemSettings", "KafkaSettings", "LlmSettings", "LogSettings", "MetricsSettings",
    "QdrantSettings", "RankingSettings", "RefreshSettings", "SettingRow", "Settings", "StateSettings",
    "TracingSettings", "WatchdogSettings", "WriterSettings", "load", "rows", "to_environ",
]

PREFIX = "FRESHET_"
CONFIG = f"{PREFIX}CONFIG"


@checked_dataclass(frozen=True, config=STRICT)
class Settings:
    """All settings."""

    home: Path = Field(default=Path(".freshet"), description="models, caches, state; FRESHET_HOME")
    kafka: KafkaSettings = field(default_factory=KafkaSettings)
    registry: RegistrySettings = field(default_factory=RegistrySettings)
    qdrant: QdrantSettings = field(default_factory=QdrantSettings)
    llm: LlmSettings = field(default_factory=LlmSettings)
    items: ItemSettings = field(default_factory=ItemSettings)
    writer: WriterSettings = field(default_factory=WriterSettings)
    fit: FitSettings = field(default_factory=FitSettings)
    events: EventSettings = field(default_factory=EventSettings)
    state: StateSettings = field(default_factory=StateSettings)
    refresh: RefreshSettings = field(default_factory=RefreshSettings)
    ranking: RankingSettings = field(default_factory=RankingSettings)
    experiment: ExperimentSettings = field(default_factory=ExperimentSettings)
    alignment: AlignmentSettings = field(default_factory=AlignmentSettings)
    watchdog: WatchdogSettings = field(default_factory=WatchdogSettings)
    log: LogSettings = field(default_factory=LogSettings)
    health: HealthSettings = field(default_factory=HealthSettings)
    metrics: MetricsSettings = field(default_factory=MetricsSettings)
    tracing: TracingSettings = field(default_factory=TracingSettings)
    console: ConsoleSettings = field(default_factory=ConsoleSettings)


@dataclass(frozen=True, slots=True)
class SettingRow:
    """One setting, for the documentation and for checking names."""

    variable: str
    section: str
    name: str
    type: str
    default: Any
    description: str
    secret: bool = False

    @property
    def file_variable(self) -> str:
        """The variable that names a file with the value, for secrets: the convention of container images."""
        return f"{self.variable}_FILE" if self.secret else ""


@cache
def rows() -> tuple[SettingRow, ...]:
    """Return every setting, in order of declaration."""
    out = [SettingRow(f"{PREFIX}HOME", "", "home", "path", ".freshet", "models, caches and state")]
    for section, kind in get_type_hints(Settings).items():
        if section == "home":
            continue
        properties = TypeAdapter(kind).json_schema()["properties"]
        for one in fields(kind):
            spec = properties[one.name]
            type_ = spec.get("type") or "|".join(option.get("type", "null") for option in spec["anyOf"])
            if "enum" in spec:
                type_ = "|".join(spec["enum"])
            out.append(SettingRow(
                f"{PREFIX}{section}_{one.name}".upper(), section, one.name, type_,
                spec.get("default", {} if type_ == "object" else None), spec.get("description", ""),
                secret=not one.repr))
    return tuple(out)


def load(environ: Mapping[str, str] | None = None, config: Path | None = None) -> Settings:
    """Return the settings of this process.

    Args:
        environ: the environment; None = the process's own.
        config: a TOML file; None = `FRESHET_CONFIG`, else `freshet.toml` here if there is one.

    Raises:
        SettingsError: a name or value is not a setting, or a file cannot be read; the text names it, never a secret.
    """
    environ = os.environ if environ is None else environ
    merged = _from_toml(config or environ.get(CONFIG))
    for row, value in _from_environ(environ):
        place = merged.setdefault(row.section, {}) if row.section else merged
        if isinstance(place, dict):  # a file with `kafka = 1` has no such section: the check below says so
            place[row.name] = value
    try:
        return TypeAdapter(Settings).validate_python(merged)
    except ValidationError as error:
        raise SettingsError(f"settings: {describe(error)}") from error


def to_environ(settings: Settings) -> dict[str, str]:
    """Return the variables that give a child process these settings, secrets included; only what is not default.

    The variable that named a secret's file comes back empty, as the child would otherwise inherit both forms.
    """
    out = {f"{PREFIX}HOME": str(settings.home)}
    for row in rows():
        if row.section:
            value = getattr(getattr(settings, row.section), row.name)
            if value is not None and _as_text(value) != _as_text(row.default):
                out[row.variable] = _as_text(value)
                if row.secret:
                    out[row.file_variable] = ""
    return out


def _as_text(value: Any) -> str:
    """Return a value as a variable holds it."""
    return ",".join(f"{name}={path}" for name, path in value.items()) if isinstance(value, dict) else str(value)


def _from_toml(named: str | Path | None) -> dict[str, Any]:
    """Return what the TOML file sets: a table per section. Without a name the file may be absent."""
    path = Path(named or "freshet.toml")
    if not named and not path.is_file():
        return {}
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SettingsError(f"{path} ({CONFIG}) is not there") from error
    except OSError as error:
        raise SettingsError(f"{path} ({CONFIG}) cannot be read: {error.strerror}") from error
    except ValueError as error:  # also bytes that are not UTF-8
        raise SettingsError(f"{path} is not TOML: {error}") from error


def _from_environ(environ: Mapping[str, str]) -> Iterator[tuple[SettingRow, str]]:
    """Yield what the environment sets, itself or by a secret's file. Empty counts as unset: compose passes such on."""
    values = {row.variable: row for row in rows()}
    files = {row.file_variable: row for row in values.values() if row.secret}
    for variable, value in environ.items():
        if not variable.startswith(PREFIX) or variable == CONFIG:
            continue
        row = values.get(variable) or files.get(variable)
        if row is None:
            raise SettingsError(f"{variable} is not a setting; `freshet doctor --settings` lists them all")
        if value == "":
            continue
        if variable in files and environ.get(row.variable):
            raise SettingsError(f"{row.variable} and {variable} are both set; unset one of them")
        yield row, _secret(variable, Path(value)) if variable in files else value


def _secret(variable: str, path: Path) -> str:
    """Return the secret in a file, without the newline that editors and `echo` put at its end."""
    try:
        secret = path.read_text(encoding="utf-8").rstrip("\n")
    except OSError as error:
        raise SettingsError(f"{variable}: {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        # Not chained: the decoder's error quotes bytes of the secret.
        raise SettingsError(f"{variable}: {path} is not UTF-8 text") from None
    if not secret:
        raise SettingsError(f"{variable}: {path} is empty")
    return secret
