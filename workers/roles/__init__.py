"""The worker roles: knowledge, ranking, alignment and guard. Each runs as a process beside the stream.

`workers/runtime` has the loop that they share.

May import: runtime, kafka.
"""
