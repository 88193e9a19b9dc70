"""Measures live quality from recommendations and events: prequential quality and the running experiment.

`models/measuring` has the statistics.

May import: –.
"""
