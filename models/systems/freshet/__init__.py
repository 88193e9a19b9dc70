"""Freshet's composition: a scorer with item texts, evidence from histories, and LWGR's user knowledge.

Serving is in `models/serving`.

May import: systems.lwgr, calibration, evidence, knowledge, language, scorers, trust, measuring,
compute, data.
"""
