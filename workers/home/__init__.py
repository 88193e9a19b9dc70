"""The home folder: its lock, and where its running stack is.

Artifacts and deployments are in `schemas/`.

May import: –.
"""
