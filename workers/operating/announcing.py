"""Running roles told that another model is in use."""

from __future__ import annotations

from schemas.errors import FreshetError
from schemas.messages import ModelUpdate
from schemas.settings import Settings
from schemas.topics import MODEL_UPDATES
from workers.home.stack_info import connected
from workers.kafka.outbox import Outbox, Output


def announce_model(settings: Settings, update: ModelUpdate) -> str:
    """Send the update to running roles and return the text to print about it.

    Raises:
        FreshetError: the broker did not take it.
    """
    try:
        settings = connected(settings)
    except FreshetError:
        return "no stack is running, so it takes effect at the next start"
    outbox = Outbox(settings.kafka, "operator")
    try:
        outbox.send([Output(MODEL_UPDATES, update.model_version, update)])
    except FreshetError as error:
        raise FreshetError(
            "saved: roles that share this folder of models load it within seconds, but those of other hosts could not "
            f"be notified: {error}") from error
    finally:
        outbox.close()
    return "running roles load it now"
