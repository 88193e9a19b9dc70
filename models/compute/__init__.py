"""Devices, principal components, nearest neighbours: no recommender in it.

Neighbours in Qdrant are in `workers/store/banks`.

May import: data.
"""
