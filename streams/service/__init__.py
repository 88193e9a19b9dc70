"""The Faust shell: batches from the broker, tables, outbox, watchdog, the process. It decides nothing.

Decisions are in `streams/decisions`.

May import: decisions, registry, profile.
"""
