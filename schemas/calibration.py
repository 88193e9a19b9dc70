"""Thresholds that `freshet fit` calibrates: stored with the models, read by streams and ranking."""

from __future__ import annotations

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
