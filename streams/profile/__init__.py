"""User states, folding events into them, the catalogue's vectors, and event decoding.

Decisions based on a state are in `streams/decisions`.

May import: detection.
"""
