"""Language models: loading, attention over cached states, item memory, adapters, encoding, writing.

What they are asked is each system's, in `models/systems`.

May import: compute, data.
"""
