"""The shared parts of user knowledge: sources, compositions, objectives, the training loop, experts.

The source of each paper is in its folder under `models/systems`.

May import: scorers, trust, measuring, compute, data.
"""
