"""Terminal output of long jobs: stages with progress and time left; durations in words.

`workers/demo` has the demo's screen.

May import: –.
"""
