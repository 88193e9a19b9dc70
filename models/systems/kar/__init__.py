"""KAR: texts a language model writes about users and items, encoded, through towers of hybrid experts.

The click models of its own task are in `benchmarks/ctr`.

May import: knowledge, language, scorers, compute, data.
"""
