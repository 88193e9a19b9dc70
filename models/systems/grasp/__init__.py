"""GRASP: descriptions of users, those of the nearest users and items, holistic attention.

The search for neighbours is in `models/compute` and `workers/store/banks`.

May import: knowledge, language, compute, data.
"""
