"""What people see of long work: stages with progress and time left; durations in words.

The demo's screen is in `workers/demo`.

May import: –.
"""
