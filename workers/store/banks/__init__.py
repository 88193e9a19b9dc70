"""Vector banks for nearest-neighbour search, in Qdrant's engine in this process or on a server.

`models/compute` has exact search in memory.

May import: store.
"""
