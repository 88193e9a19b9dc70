"""Data sets on disk, sequences of users' events, and the training fold.

Downloads are in `workers/data`.

May import: –.
"""
