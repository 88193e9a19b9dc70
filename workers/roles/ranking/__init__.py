"""The ranking role: answers ranking requests with recommendations and judgements.

`models/serving` computes the scores, `models/trust` the bound.

May import: runtime, catalogue, store, kafka, home.
"""
