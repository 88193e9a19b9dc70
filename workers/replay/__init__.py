"""Replays recorded events through the live decisions and workers, without broker or clock, to compare refresh policies.

`workers/measurement` has the live measurement.

May import: training, measurement, roles.knowledge, roles.ranking, store, kafka, terminal.
"""
