"""Held-out events: the reference and the fused scores are calibrated on them, and each part's worth is measured.

The radius is chosen from these scores in `models/trust`.

May import: evidence, knowledge, scorers, trust, measuring, data.
"""
