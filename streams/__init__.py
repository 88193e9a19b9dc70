"""The Faust application and the pure functions it calls. Imports neither torch nor the store.

The workers that generate and rank are in `workers/`. Rooms import each other in one direction only, see
`tests/test_borders.py`.
"""
