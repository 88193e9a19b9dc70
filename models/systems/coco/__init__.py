"""CoCo (arXiv 2510.14257): a learned soft-prompt codebook, prompt-as-query attention, gated fusion.

Its contradictions and LoRA step are in `models/aligning`.

May import: knowledge, language, compute.
"""
