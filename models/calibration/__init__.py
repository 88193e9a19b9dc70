"""Scoring of held-out events with and without knowledge, and calibration of the evidence.

The radius is chosen from these scores in `models/trust`.

May import: evidence, knowledge, scorers, trust, measuring, data.
"""
