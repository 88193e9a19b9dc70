"""Settings of the connection that contradict each other, or name files that cannot be used, are one clear line."""

from __future__ import annotations

import re
import ssl
from dataclasses import replace
from pathlib import Path

import pytest

from schemas.errors import SettingsError
from schemas.settings import KafkaSettings
from schemas.settings.connection import check_connection, describe_connection, tls_context
from tests.certificates import KEY_PASSWORD, Certificates, make

SASL = KafkaSettings(security_protocol="SASL_PLAINTEXT", sasl_mechanism="SCRAM-SHA-512", sasl_username="freshet",
                     sasl_password="hunter2")  # noqa: S106


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def mutual(files: Certificates) -> KafkaSettings:
    return KafkaSettings(
        security_protocol="SSL", ssl_cafile=str(files.ca), ssl_certfile=str(files.client),
        ssl_keyfile=str(files.encrypted_key), ssl_key_password=KEY_PASSWORD)


def refused(settings: KafkaSettings) -> str:
    with pytest.raises(SettingsError) as caught:
        check_connection(settings)
    assert "\n" not in str(caught.value)
    for secret in ("hunter2", KEY_PASSWORD):
        assert secret not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("change", "says"), [
    ({"security_protocol": "PLAINTEXT"}, "FRESHET_KAFKA_SASL_USERNAME is set, but .*PLAINTEXT and does not use it"),
    ({"security_protocol": "SSL"}, "FRESHET_KAFKA_SASL_USERNAME is set, but .*SSL and does not use it"),
    ({"security_protocol": "PLAINTEXT", "sasl_username": ""}, "SASL_PASSWORD_FILE is set, but"),
    ({"sasl_username": ""}, "FRESHET_KAFKA_SASL_USERNAME is not set, and .*SASL_PLAINTEXT needs it"),
    ({"sasl_password": ""}, "FRESHET_KAFKA_SASL_PASSWORD_FILE is not set"),
    ({"ssl_cafile": "ca.pem"}, "FRESHET_KAFKA_SSL_CAFILE is set, but .* set SSL or SASL_SSL"),
    ({"ssl_certfile": "client.pem"}, "FRESHET_KAFKA_SSL_CERTFILE is set, but"),
    ({"ssl_key_password": "hunter2"}, "FRESHET_KAFKA_SSL_KEY_PASSWORD_FILE is set, but"),
])
def test_a_setting_that_would_be_ignored_or_is_missing_is_named(change: dict[str, str], says: str) -> None:
    check_connection(SASL)
    text = refused(replace(SASL, **change))  # type: ignore[arg-type]
    assert re.search(says, text), text


def test_a_client_certificate_and_its_key_are_loaded(mutual: KafkaSettings, files: Certificates) -> None:
    context = tls_context(mutual)
    assert context.check_hostname
    assert context.verify_mode is ssl.CERT_REQUIRED
    for good in (mutual, replace(mutual, ssl_keyfile=str(files.key), ssl_key_password=""),
                 replace(mutual, ssl_certfile=str(files.stranger), ssl_keyfile="", ssl_key_password=""),
                 replace(mutual, ssl_certfile="", ssl_keyfile="", ssl_key_password="")):
        check_connection(good)


def test_files_that_cannot_be_used_are_named(mutual: KafkaSettings, files: Certificates, tmp_path: Path) -> None:
    junk = tmp_path / "junk"
    junk.write_text("no certificate")
    key = str(files.encrypted_key)
    for change, says in (
        ({"ssl_cafile": "none.pem"}, "FRESHET_KAFKA_SSL_CAFILE: none.pem cannot be read: No such file"),
        ({"ssl_certfile": str(tmp_path)}, f"FRESHET_KAFKA_SSL_CERTFILE: {tmp_path} cannot be read: Is a directory"),
        ({"ssl_keyfile": "none.key"}, "FRESHET_KAFKA_SSL_KEYFILE: none.key cannot be read"),
        ({"ssl_cafile": str(junk)}, f"FRESHET_KAFKA_SSL_CAFILE: {junk} holds no certificate"),
        ({"ssl_certfile": str(junk)}, f"{junk} and {key} hold no certificate and key"),
        ({"ssl_certfile": str(files.stranger)}, f"{files.stranger} and the key in {key} do not belong together"),
        ({"ssl_key_password": "hunter2"}, f"{key} is encrypted, and FRESHET_KAFKA_SSL_KEY_PASSWORD_FILE does not open"),
        ({"ssl_key_password": ""}, "FRESHET_KAFKA_SSL_KEY_PASSWORD_FILE is not set"),
        ({"ssl_certfile": ""}, "set FRESHET_KAFKA_SSL_CERTFILE"),
    ):
        text = refused(replace(mutual, **change))  # type: ignore[arg-type]
        assert says in text, text


def test_the_connection_is_described_without_secrets(mutual: KafkaSettings, files: Certificates) -> None:
    assert describe_connection(KafkaSettings()) == "not encrypted, without a user"
    assert describe_connection(SASL) == "not encrypted, user freshet by SCRAM-SHA-512"
    assert describe_connection(mutual) == f"TLS, trusts {files.ca}, client certificate {files.client}"
    both = replace(SASL, security_protocol="SASL_SSL")
    assert describe_connection(both) == "TLS, trusts the system's CAs, user freshet by SCRAM-SHA-512"
