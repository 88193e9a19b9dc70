"""Freshet's own composition: a scorer with item texts, evidence of histories and LWGR's knowledge of users.

Serving it is in `models/serving`.

May import: systems.lwgr, calibration, evidence, knowledge, language, scorers, trust, compute, data.
"""
