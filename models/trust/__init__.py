"""The trust region and its radius: how far knowledge may move the recommendations from behaviour alone.

How a user's trust changes over time is in `streams/detection/trust.py`.

May import: measuring, data.
"""
