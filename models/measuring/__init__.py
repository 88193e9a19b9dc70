"""Evaluation protocols, outcomes, metrics, intervals, harm, and the uplift of an experiment; numpy only.

The scores come from `models/scorers`.

May import: data.
"""
