"""Knowledge requests in, generated vectors into the store, updates out.

The models are in `models/serving`.

May import: runtime, store.banks, store, kafka.
"""
