"""The same decisions and workers on recorded events, without broker and clock: policies compared on one history.

Live measurement is in `workers/measurement`.

May import: training, measurement, roles.knowledge, roles.ranking, store, kafka, terminal.
"""
