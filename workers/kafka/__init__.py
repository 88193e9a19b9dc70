"""Clients of the broker: configuration, topics, lag, the outbox, a reader without a group.

The embedded broker's process is in `workers/supervision`.

May import: –.
"""
