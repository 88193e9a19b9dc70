"""The errors that Freshet raises deliberately."""

from __future__ import annotations


class FreshetError(Exception):
    """An error that the user can fix. The text says what to do; the command line prints it without a traceback."""


class SettingsError(FreshetError):
    """A setting is missing, unknown or out of range."""


class DataError(FreshetError):
    """A data set or catalogue is unusable."""


class ArtifactError(FreshetError):
    """A fitted model is missing, incomplete or does not match its hash."""


class StoreUnavailableError(FreshetError):
    """The vector store did not answer; callers fall back to behaviour alone."""


class BrokerUnavailableError(FreshetError):
    """No broker answered; it may come back, so who can wait does."""


class StalledError(FreshetError):
    """A stage made no progress within its time limit; the text names the stage."""


class PoisonError(FreshetError):
    """A record is unusable; `reason` goes to the dead letters with the record's bytes."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
