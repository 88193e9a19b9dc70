"""Whether the brokers go on refusing a client that runs: librdkafka tries again for ever, and only its log says so."""

from __future__ import annotations

import time
from collections.abc import Callable

from confluent_kafka import KafkaError

from schemas.errors import FreshetError
from schemas.settings import KafkaSettings
from workers.kafka.configuration import refusal

# The client tries every 2 s at the latest: a longer silence means that it got in.
_SILENCE_S = 10.0


class Refusals:
    """Hears a client's errors and raises once brokers have refused it for a while.

    Args:
        patience_s: a broker that starts, or a password that is being changed, may refuse for a moment.
        clock: monotonic seconds.
    """

    def __init__(
        self, settings: KafkaSettings, patience_s: float = 10.0, clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._patience_s = patience_s
        self._clock = clock
        self._text = ""
        self._since = self._last = -_SILENCE_S

    def note(self, error: KafkaError) -> None:
        """Take an error of the client: its `error_cb`."""
        if text := refusal(self._settings, [error]):
            now = self._clock()
            if now - self._last >= _SILENCE_S:
                self._since = now
            self._text, self._last = text, now

    def check(self) -> None:
        """Raise FreshetError if the refusals have gone on for `patience_s`; the text says why and what to do."""
        if self._text and self._last - self._since >= self._patience_s:
            raise FreshetError(self._text)
