"""Contradicted samples gathered from the stream teach the language model; a better adapter is published.

The training step is in `models/aligning`.

May import: roles.knowledge, runtime, kafka.
"""
