"""Drift detection on planted changes, beside river's detectors."""
