"""The generative scorer: semantic IDs, beam search over their trie, training.

Serving is in `models/serving`.

May import: scorers, measuring, compute, data.
"""
