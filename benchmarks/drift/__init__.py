"""Drift detection on planted changes, compared with river's detectors."""
