"""Gets data in: downloads and converts MovieLens, reads event files and produces events.

`models/data` has the data sets for training.

May import: kafka.
"""
