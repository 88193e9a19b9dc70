"""Calibrate thresholds on replayed histories: drift, margin bound, minimum history, staleness.

The command that runs this is in `workers/training`.

May import: decisions, profile, detection.
"""
