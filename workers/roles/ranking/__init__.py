"""Ranking requests in, recommendations and judgements out.

Scores come from `models/serving`, the bound from `models/trust`.

May import: runtime, store, kafka.
"""
