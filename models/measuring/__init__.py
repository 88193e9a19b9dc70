"""Protocols, outcomes, metrics, intervals, harm, and the effect of an experiment; numpy only.

Scores come from `models/scorers`.

May import: data.
"""
