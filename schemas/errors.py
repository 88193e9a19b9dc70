"""The root of every error Freshet raises on purpose."""

from __future__ import annotations


class FreshetError(Exception):
    """Something a person can mend; its text says what and how. The command line prints it without a trace."""


class SettingsError(FreshetError):
    """A setting is missing, unknown or out of range."""


class DataError(FreshetError):
    """A data set or catalogue cannot be used as it is."""


class ArtifactError(FreshetError):
    """A fitted model is absent, incomplete or does not match its hash."""


class StoreUnavailableError(FreshetError):
    """The vector store did not answer; the caller falls back to behaviour."""


class StalledError(FreshetError):
    """A stage made no progress for its stated time; the text names the stage."""


class PoisonError(FreshetError):
    """One record cannot be used; `reason` goes to the dead letters with its bytes."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
