"""GRASP: descriptions of users, their nearest users and items, holistic attention.

Neighbour search is in `models/compute` and `workers/store/banks`.

May import: knowledge, language, compute, data.
"""
