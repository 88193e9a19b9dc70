"""LWGR (arXiv 2605.18771): soft instructions from parallel codebooks, read by the frozen language model.

The margin constraint is in `models/knowledge/objectives.py`, the trust region in `models/trust`.

May import: knowledge, language.
"""
