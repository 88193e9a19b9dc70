"""Tuning of the reference: its settings varied one at a time."""
