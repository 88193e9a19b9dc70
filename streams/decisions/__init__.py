"""Whose knowledge is refreshed, when and at what price; the planner folds a batch into decisions and messages.

Statistics behind the decisions are in `streams/detection`.

May import: profile, detection.
"""
