"""The worker roles: knowledge, ranking, alignment and guard. Each runs in its own process.

`workers/runtime` has the loop that they share.

May import: runtime, kafka.
"""
