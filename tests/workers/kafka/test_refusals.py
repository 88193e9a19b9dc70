from __future__ import annotations

import pytest
from confluent_kafka import KafkaError

from schemas.errors import FreshetError
from schemas.settings import KafkaSettings
from workers.kafka.refusals import Refusals

REFUSED = KafkaError(KafkaError._AUTHENTICATION, "sasl_ssl://a:1/1: SASL authentication error: Authentication failed "
                                                 "(after 3ms in state AUTH_REQ)")
AWAY = KafkaError(KafkaError._TRANSPORT, "sasl_ssl://a:1/1: Connect to ipv4#a:1 failed: Connection refused")


def heard(at: list[float], error: KafkaError = REFUSED) -> Refusals:
    times = iter(at)
    out = Refusals(KafkaSettings(bootstrap="a:1", sasl_username="me"), clock=lambda: next(times))
    for _ in at:
        out.note(error)
    return out


def test_a_client_that_is_refused_again_and_again_ends_with_the_reason() -> None:
    with pytest.raises(FreshetError, match=r"^a:1 refuses user 'me' by PLAIN \(SASL .* failed\); check"):
        heard([0.5 * step for step in range(21)]).check()


@pytest.mark.parametrize("at", [[], [3.0], [0.0, 2.0, 4.0], [0.0, 20.0, 40.0], [0.0, 5.0, 30.0, 35.0]])
def test_a_refusal_for_a_moment_or_now_and_then_is_none(at: list[float]) -> None:
    heard(at).check()


def test_a_broker_that_is_away_is_waited_for() -> None:
    heard([0.5 * step for step in range(100)], AWAY).check()
