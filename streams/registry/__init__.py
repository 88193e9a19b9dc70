"""Asks a schema registry for the schemas of a batch's records.

What they make of the bytes is in `schemas/reading`.

May import: –.
"""
