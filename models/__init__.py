"""Tensors in, tensors out: scorers, language models, knowledge, trust, training, measuring.

No broker, no store, no clock: those are in `workers/`. Imports run one way between rooms, see `tests/test_borders.py`.
"""
