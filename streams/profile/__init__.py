"""A user's state, how events fold into it, the catalogue's vectors, and decoding of events.

What follows from a state is in `streams/decisions`.

May import: detection.
"""
