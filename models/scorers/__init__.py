"""Dense scorers of a catalogue from a history: backbone, fused scorer, training, snapshots, ranks.

Semantic IDs are in `models/generative`.

May import: measuring, compute, data.
"""
