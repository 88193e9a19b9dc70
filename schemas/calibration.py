"""What `freshet fit` calibrates: thresholds, stored with the models and read by streams and ranking, and what pays."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field

CALIBRATION_VERSION = 1


class Calibration(BaseModel):
    """Thresholds calibrated on the training part of the timeline, with the evidence for each choice."""

    model_config = ConfigDict(frozen=True)

    schema_version: int = CALIBRATION_VERSION
    min_history: int = Field(ge=1, description="events before knowledge is generated for the first time")
    ttl_s: float = Field(gt=0, description="age in event time at which knowledge is stale")
    drift_mean: float = Field(description="population mean of d = 1 − cos(short, anchor)")
    drift_sd: float = Field(gt=0, description="population standard deviation of d")
    drift_prior: float = Field(ge=0, description="the population's weight in a user's own mean and sd, in events")
    drift_slack: float = Field(ge=0, description="CUSUM allowance, in standard deviations")
    drift_threshold: float = Field(gt=0, description="CUSUM threshold h")
    drift_false_alarm_every: float = Field(gt=0, description="events per false alarm on user-shuffled histories")
    margin_bound: float = Field(gt=0, description="B: margins are clipped to [−B, B], nats")
    epsilon: float = Field(ge=0, description="full trust radius (models/trust/region.py)")
    knowledge: bool = Field(
        default=True, description="whether the model uses knowledge of users; if not, none is ever requested")
    evidence: dict[str, float] = Field(default_factory=dict, description="figures behind the choices")


class Recalibration(BaseModel):
    """A drift threshold that `freshet calibrate` chose for a fitted model; stored next to the model's folder.

    It is valid for one calibration.json, identified by its hash, because it depends on the mean and sd there.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    schema_version: int = CALIBRATION_VERSION
    model_version: str
    calibration_hash: str = Field(description="SHA-256 of the calibration.json whose mean, sd, prior and slack it uses")
    data_hash: str = Field(description="of the events and items it was calibrated on")
    calibrated_at: float = Field(description="seconds since 1970")
    drift_threshold: float = Field(gt=0, allow_inf_nan=False, description="CUSUM threshold h")
    drift_false_alarm_every: float = Field(gt=0, allow_inf_nan=False, description="as in Calibration")
    evidence: dict[str, float] = Field(default_factory=dict, description="drift_*: stated rate, and the check")

    def apply(self, calibration: Calibration) -> Calibration:
        """Return `calibration` with this threshold."""
        return calibration.model_copy(update={
            "drift_threshold": self.drift_threshold, "drift_false_alarm_every": self.drift_false_alarm_every,
            "evidence": calibration.evidence | self.evidence})


LABELS = {
    "behaviour": "behaviour: transformer and closed form", "words": "words of item texts",
    "encoder": "sentence encoder", "written": "written item knowledge", "features": "item texts in the transformer",
    "user_vectors": "user vectors"}


class Worth(BaseModel):
    """What one part adds to the parts above it, on held-out events that did not choose its weight."""

    model_config = ConfigDict(frozen=True)

    part: str = Field(description="name of the part")
    adds: float = Field(description="NDCG@10 that it adds; of behaviour, its own NDCG@10")
    low: float = Field(description="lower end of the 95% interval over users")
    high: float = Field(description="upper end of the 95% interval over users")
    used: bool = Field(description="whether the version uses it")
    weight: float = Field(default=0.0, ge=0, description="its weight, chosen on other held-out users")
    events: int = Field(default=0, ge=0, description="held-out events it was measured on")
    calls: float = Field(default=0.0, ge=0, description="texts that an encoder read or a language model read or wrote; "
                                                        "of user vectors, refreshes of the held-out users")
    tokens: float = Field(default=0.0, ge=0, description="tokens of these passes")
    seconds: float = Field(default=0.0, ge=0, description="of measuring the part")

    @property
    def pays(self) -> bool:
        """Whether the interval is above 0."""
        return self.low > 0


def table(parts: Sequence[Worth]) -> list[str]:
    """Return the table as lines of text."""
    if not parts:
        return []
    width = max(len(LABELS.get(part.part, part.part)) for part in parts)
    lines = [f"{'what pays':<{width}}  {'adds NDCG@10':>26}  {'calls':>7}  {'tokens':>9}  {'seconds':>7}  used"]
    for part in parts:
        own = part.part == "behaviour"
        adds = f"{part.adds:.4f}" if own else f"{part.adds:+.4f} [{part.low:+.4f}, {part.high:+.4f}]"
        used = "yes" if part.used and (part.pays or own) else (
            "yes, asked for" if part.used else "no: its interval holds 0" if part.weight > 0 else "no")
        lines.append(f"{LABELS.get(part.part, part.part):<{width}}  {adds:>26}  {part.calls:>7,.0f}  "
                     f"{part.tokens:>9,.0f}  {part.seconds:>7,.1f}  {used}")
    return lines
