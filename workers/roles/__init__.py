"""What runs as a process beside the stream: knowledge, ranking, alignment, guard.

The loop they share is in `workers/runtime`.

May import: runtime, kafka.
"""
