"""Banks of vectors for nearest neighbours, in this process or in the store's.

Exact search in memory is in `models/compute`.

May import: –.
"""
