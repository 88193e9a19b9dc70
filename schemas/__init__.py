"""Everything that crosses a process boundary: messages, topics, artifacts on disk, and the settings.

Every other package may import `schemas`, so nothing here imports torch, kafka, faust or qdrant.
"""
