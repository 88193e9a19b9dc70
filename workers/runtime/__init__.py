"""The loop of a worker: batches, retries, dead letters, commits, model updates, progress, the watchdog.

What is done with a batch is in `workers/roles`.

May import: kafka.
"""
