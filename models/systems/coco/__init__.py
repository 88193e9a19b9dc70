"""CoCo (arXiv 2510.14257): a learned soft-prompt codebook, an adapter per user, a gate.

Its contradictions and LoRA step are in `models/aligning`.

May import: knowledge, language, compute.
"""
