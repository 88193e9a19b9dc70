"""Fitting, evaluating and calibrating as commands, and the keys under which their results are kept.

The training itself is in `models/`.

May import: store.banks, home, terminal.
"""
