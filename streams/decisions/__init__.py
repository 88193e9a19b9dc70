"""Refresh decisions: which users, when and at what price. The planner turns a batch into decisions and messages.

The statistics behind the decisions are in `streams/detection`.

May import: profile, detection.
"""
