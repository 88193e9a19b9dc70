"""Thresholds from replayed histories: drift, margins, shortest history, staleness.

The command is in `workers/training`.

May import: decisions, profile, detection.
"""
