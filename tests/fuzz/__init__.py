"""Hostile bytes for every decoder of bytes from outside: `make fuzz`.

A decoder returns a result or raises a FreshetError, which is what the loops turn into a dead letter, an error message
or a refusal. Any other exception would stop a stream or show a traceback; so would one that takes long.
"""
