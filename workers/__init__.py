"""Long-running processes and the command line: everything that has a broker, a store, a disk or a screen.

Decisions and models are in `streams/` and `models/`. Imports run one way between rooms, see `tests/test_borders.py`.
"""
