"""How clients and brokers prove who they are: settings that contradict each other, and files, are checked before a
client connects. A client would ignore the one and report the other as a broker that does not answer.
"""

from __future__ import annotations

import ssl
from pathlib import Path

from schemas.errors import SettingsError
from schemas.settings.kafka import KafkaSettings

_PROTOCOL = "FRESHET_KAFKA_SECURITY_PROTOCOL"
_SASL = {"sasl_username": "FRESHET_KAFKA_SASL_USERNAME", "sasl_password": "FRESHET_KAFKA_SASL_PASSWORD_FILE"}
_TLS = {
    "ssl_cafile": "FRESHET_KAFKA_SSL_CAFILE", "ssl_certfile": "FRESHET_KAFKA_SSL_CERTFILE",
    "ssl_keyfile": "FRESHET_KAFKA_SSL_KEYFILE", "ssl_key_password": "FRESHET_KAFKA_SSL_KEY_PASSWORD_FILE"}


def uses_sasl(kafka: KafkaSettings) -> bool:
    """Return whether the client gives a user and a password."""
    return kafka.security_protocol.startswith("SASL_")


def uses_tls(kafka: KafkaSettings) -> bool:
    """Return whether the connection is encrypted, and the broker's certificate checked."""
    return kafka.security_protocol.endswith("SSL")


def key_file(kafka: KafkaSettings) -> str:
    """Return the file of the client's private key, "" without a client certificate."""
    return kafka.ssl_keyfile or kafka.ssl_certfile


def check_connection(kafka: KafkaSettings) -> None:
    """Check that the settings of the connection belong together and that its files can be used.

    Raises:
        SettingsError: they do not; the text names the setting, never a secret.
    """
    protocol = f"{_PROTOCOL} is {kafka.security_protocol}"
    for names, used, others in ((_SASL, uses_sasl(kafka), "SASL_PLAINTEXT or SASL_SSL"),
                                (_TLS, uses_tls(kafka), "SSL or SASL_SSL")):
        given = [variable for name, variable in names.items() if getattr(kafka, name)]
        if given and not used:
            raise SettingsError(f"{given[0]} is set, but {protocol} and does not use it: set {others}, or unset it")
    if uses_sasl(kafka):
        for name, variable in _SASL.items():
            if not getattr(kafka, name):
                raise SettingsError(f"{variable} is not set, and {protocol} needs it")
    if not kafka.ssl_certfile and (kafka.ssl_keyfile or kafka.ssl_key_password):
        raise SettingsError("a client key is set without its certificate: set FRESHET_KAFKA_SSL_CERTFILE")
    if uses_tls(kafka):
        tls_context(kafka)


def tls_context(kafka: KafkaSettings) -> ssl.SSLContext:
    """Return what a TLS connection to the brokers needs: whom to trust, and the client's certificate if there is one.

    Raises:
        SettingsError: a file cannot be read or used.
    """
    for name in ("ssl_cafile", "ssl_certfile", "ssl_keyfile"):
        path = getattr(kafka, name)
        try:
            if path:
                Path(path).read_bytes()
        except OSError as error:
            raise SettingsError(f"{_TLS[name]}: {path} cannot be read: {error.strerror}") from error
    try:
        context = ssl.create_default_context(cafile=kafka.ssl_cafile or None)
    except ssl.SSLError as error:
        raise SettingsError(f"{_TLS['ssl_cafile']}: {kafka.ssl_cafile} holds no certificate in PEM form") from error
    if not kafka.ssl_certfile:
        return context
    asked: list[bool] = []

    def password() -> str:
        # Called for an encrypted key only; without this function OpenSSL asks at the terminal.
        asked.append(True)
        return kafka.ssl_key_password

    try:
        context.load_cert_chain(kafka.ssl_certfile, key_file(kafka), password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            why = f"{kafka.ssl_certfile} and the key in {key_file(kafka)} do not belong together"
        elif asked:
            why = (f"the key in {key_file(kafka)} is encrypted, and {_TLS['ssl_key_password']} "
                   + ("does not open it" if kafka.ssl_key_password else "is not set"))
        else:
            why = f"{kafka.ssl_certfile} and {key_file(kafka)} hold no certificate and key in PEM form"
        raise SettingsError(f"{_TLS['ssl_certfile']}: {why}") from error
    return context


def describe_connection(kafka: KafkaSettings) -> str:
    """Return how the client connects, in words and without secrets."""
    if not uses_tls(kafka) and not uses_sasl(kafka):
        return "not encrypted, without a user"
    parts = ["TLS" if uses_tls(kafka) else "not encrypted"]
    if uses_tls(kafka):
        parts.append(f"trusts {kafka.ssl_cafile}" if kafka.ssl_cafile else "trusts the system's CAs")
    if kafka.ssl_certfile:
        parts.append(f"client certificate {kafka.ssl_certfile}")
    if uses_sasl(kafka):
        parts.append(f"user {kafka.sasl_username} by {kafka.sasl_mechanism}")
    return ", ".join(parts)
