"""What crosses a process boundary: messages, topics, artifacts on disk, and the one settings object.

Nothing here imports torch, kafka, faust or qdrant: every other package may import `schemas`.
"""
