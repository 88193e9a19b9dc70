"""CoCo (arXiv 2510.14257): a learned codebook of soft prompts, a LoRA adapter, gated fusion.

Its contradictions and LoRA step are in `models/aligning`.

May import: knowledge, language, compute.
"""
