"""Processes started, watched, restarted and stopped: the stack, a child, the embedded broker; their health and logs.

What a role does is in `workers/roles`.

May import: kafka, home.
"""
