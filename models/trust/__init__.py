"""How far knowledge may move what behaviour alone would recommend: the trust region and its radius.

A user's trust over time is in `streams/detection/trust.py`.

May import: measuring, data.
"""
