"""Alignment of the language model: a LoRA adapter is trained on contradictions, then judged, and published or dropped.

`workers/roles/alignment` selects the users for training.

May import: serving, systems.lwgr, knowledge, language, scorers, measuring, data.
"""
