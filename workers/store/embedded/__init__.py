"""Qdrant's engine in a process of its own, behind the server's HTTP calls: the embedded default.

Clients use `workers/store/qdrant.py` for it as for a server.

May import: store.banks, store, home.
"""
