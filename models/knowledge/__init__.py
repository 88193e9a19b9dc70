"""What every system's knowledge of users has in common: sources, compositions, objectives, the training loop, experts.

A paper's own source is in its folder under `models/systems`.

May import: scorers, trust, measuring, compute, data.
"""
