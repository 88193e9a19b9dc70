"""The trace that this process works on now, for its log lines."""

from __future__ import annotations


class CurrentTrace:
    """Trace and span, "" = none. One per process: a role works on one batch at a time, in whichever thread."""

    def __init__(self) -> None:
        self.ids = ("", "")

    def set(self, trace_id: str, span_id: str) -> None:
        """Note hexadecimal ids."""
        self.ids = (trace_id, span_id)

    def clear(self) -> None:
        """Forget them."""
        self.ids = ("", "")


current = CurrentTrace()
