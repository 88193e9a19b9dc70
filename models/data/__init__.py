"""Data sets on disk, sequences of users' events, what may be trained on.

Downloading is in `workers/data`.

May import: –.
"""
