"""Held-out events scored with and without knowledge, and how much evidence of histories may count.

Choosing a radius from the scores is in `models/trust`.

May import: evidence, knowledge, scorers, trust, measuring, data.
"""
