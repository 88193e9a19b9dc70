"""The home folder: its lock, where its running stack is, the titles of its items.

Artifacts and deployments are in `schemas/`.

May import: –.
"""
