"""Data in: MovieLens fetched and converted, files read and produced as events.

Data sets for training are in `models/data`.

May import: kafka.
"""
