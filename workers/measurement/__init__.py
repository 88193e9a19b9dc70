"""Figures from the recommendation topic: prequential quality and the running experiment.

Their statistics are in `models/measuring`.

May import: –.
"""
