"""The generative scorer: semantic IDs, beams over their trie, training.

Serving it is in `models/serving`.

May import: scorers, measuring, compute, data.
"""
