"""Contradictions teach the language model: a LoRA adapter is trained on them, judged and published or dropped.

Which users are trained on is decided in `workers/roles/alignment`.

May import: serving, systems.lwgr, knowledge, language, scorers, measuring, data.
"""
