"""KAR: a language model's texts about users and items, encoded, through towers of hybrid experts.

The click models of KAR's own task are in `benchmarks/ctr`.

May import: knowledge, language, scorers, compute, data.
"""
