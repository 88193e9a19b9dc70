"""The knowledge role: generates the requested knowledge, writes it to the store and announces it.

`models/serving` has the models.

May import: runtime, catalogue, store.banks, store, kafka.
"""
