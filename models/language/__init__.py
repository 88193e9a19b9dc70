"""Language models: loading, attention over cached states, item memory, adapters, encoding, text generation.

The prompts and instructions of each system are in `models/systems`.

May import: compute, data.
"""
