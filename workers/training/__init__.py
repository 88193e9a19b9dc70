"""Runs fitting, evaluation and calibration, and computes the keys under which their results are cached.

`models/` has the training itself.

May import: store.banks, store, home, terminal.
"""
