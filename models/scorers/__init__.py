"""Dense scorers, which score the whole catalogue for a history: backbone, fused scorer, training, snapshots, ranks.

Semantic IDs are in `models/generative`.

May import: measuring, compute, data.
"""
