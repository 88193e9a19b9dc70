"""How the streams role reaches the brokers: Faust's credentials, and a sentence where a broker refuses them.

Faust itself reports a refusal as a broker that does not answer, with a stack trace, at every start.
"""

from __future__ import annotations

import ssl
from typing import Any

import faust
from aiokafka.conn import collect_hosts, create_conn
from aiokafka.errors import (
    IllegalSaslStateError,
    KafkaError,
    SaslAuthenticationFailed,
    UnsupportedSaslMechanismError,
)
from faust.transport.drivers.aiokafka import credentials_to_aiokafka_auth
from faust.types.auth import AuthProtocol, SASLMechanism

from schemas.errors import FreshetError
from schemas.settings import KafkaSettings
from schemas.settings.connection import check_connection, tls_context, uses_sasl, uses_tls

_REFUSED = (SaslAuthenticationFailed, UnsupportedSaslMechanismError, IllegalSaslStateError)


def credentials(kafka: KafkaSettings) -> Any:
    """Return Faust's credentials for the settings, None for PLAINTEXT.

    Raises:
        SettingsError: they contradict each other, or a file cannot be used.
    """
    check_connection(kafka)
    context = tls_context(kafka) if uses_tls(kafka) else None
    if not uses_sasl(kafka):
        return faust.SSLCredentials(context) if context else None
    out = faust.SASLCredentials(
        username=kafka.sasl_username, password=kafka.sasl_password,
        mechanism=SASLMechanism(kafka.sasl_mechanism), ssl_context=context)
    out.protocol = AuthProtocol(kafka.security_protocol)
    return out


async def check_brokers(kafka: KafkaSettings, timeout_s: float = 10.0) -> None:
    """Raise FreshetError if the brokers refuse the client. One that does not answer is for Faust to wait for."""
    refusals = []
    for host, port, _ in collect_hosts(kafka.bootstrap):
        try:
            connection = await create_conn(
                host, port, request_timeout_ms=int(timeout_s * 1000),
                **credentials_to_aiokafka_auth(credentials(kafka)))
        except (TimeoutError, OSError, KafkaError) as error:
            refusals.append(_refusal(f"{host}:{port}", kafka, error))
        else:
            connection.close()
            return
    for refusal in filter(None, refusals):
        raise FreshetError(refusal)


def _refusal(server: str, kafka: KafkaSettings, error: BaseException) -> str:
    """Return what to tell of a connection that failed, "" if the broker may only be away."""
    if isinstance(error, _REFUSED):
        return (f"{server} refuses user {kafka.sasl_username!r} by {kafka.sasl_mechanism} ({error}); check "
                "FRESHET_KAFKA_SASL_USERNAME, _MECHANISM and _PASSWORD_FILE")
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ssl.SSLError):
        cause = cause.__cause__ or cause.__context__
    if cause is None:
        return ""
    if isinstance(cause, ssl.SSLCertVerificationError):
        return (f"the certificate of {server} is not trusted ({cause.verify_message}); set FRESHET_KAFKA_SSL_CAFILE to "
                "a file with its CA, and use the host name that is in the certificate")
    if "ALERT" in (cause.reason or ""):
        return (f"{server} refuses this client's TLS certificate ({cause.reason}); check FRESHET_KAFKA_SSL_CERTFILE")
    return ""
