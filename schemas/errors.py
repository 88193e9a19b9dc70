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


class NewerFormatError(FreshetError):
    """A newer release wrote this. Nothing was changed; the text says what it is and that the newer release reads it."""

    def __init__(self, what: str, found: int, known: int) -> None:
        super().__init__(f"{what} is of format {found}, newer than this release's {known}; run the newer release")


class StoreUnavailableError(FreshetError):
    """The vector store is away or busy; callers wait, or fall back to behaviour alone.

    Attributes:
        retry_after_s: how long the store asks its callers to wait, seconds; 0 = it does not say.
    """

    def __init__(self, text: str, retry_after_s: float = 0.0) -> None:
        super().__init__(text)
        self.retry_after_s = retry_after_s


class BrokerUnavailableError(FreshetError):
    """No broker answered; it may come back, so who can wait does."""


class StalledError(FreshetError):
    """A stage made no progress within its time limit; the text names the stage."""


def is_records_fault(error: Exception) -> bool:
    """Tell whether an error that processing a record raised may be the record's fault: it is tried alone, then buried.

    A lack of memory, a disk error or a FreshetError (the settings, the store, the model) would hit any record. Whatever
    else a program raises on strange content counts as the record's fault; `FailureLimit` bounds the mistake.
    """
    return isinstance(error, PoisonError) or not isinstance(error, (FreshetError, OSError, MemoryError))


class PoisonError(FreshetError):
    """A record is unusable; `reason` goes to the dead letters with the record's bytes."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
