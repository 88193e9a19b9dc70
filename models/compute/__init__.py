"""Devices, principal components and nearest neighbours; nothing specific to recommenders.

Neighbour search in Qdrant is in `workers/store/banks`.

May import: data.
"""
