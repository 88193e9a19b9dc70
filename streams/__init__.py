"""The Faust application and the pure folds and decisions it calls; neither torch nor the store.

Workers that generate and rank are in `workers/`. Imports run one way between rooms, see `tests/test_borders.py`.
"""
