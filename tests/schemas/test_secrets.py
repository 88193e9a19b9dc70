"""Secrets: where they come from, and that nothing shows them."""

import traceback

import pytest
from pydantic import ValidationError

from schemas.errors import SettingsError
from schemas.settings import (
    ConsoleSettings,
    KafkaSettings,
    QdrantSettings,
    RegistrySettings,
    Settings,
    WriterSettings,
    load,
    rows,
    to_environ,
)

SECRETS = [row for row in rows() if row.secret]


def whole_text(error: BaseException) -> str:
    """What an uncaught error prints, the errors behind it included; without the lines of code."""
    return "".join(traceback.format_exception(error, limit=0))


def test_a_secret_comes_from_toml_then_a_file_then_the_environment(toml, tmp_path):
    config = toml('[qdrant]\napi_key = "toml"\nurl = "toml"\n')
    secret = tmp_path / "secret"
    secret.write_text("file\n")
    assert load({}, config).qdrant == QdrantSettings(url="toml", api_key="toml")
    assert load({"FRESHET_QDRANT_API_KEY_FILE": str(secret)}, config).qdrant == QdrantSettings("toml", "file")
    assert load({"FRESHET_QDRANT_API_KEY": "own"}, config).qdrant == QdrantSettings("toml", "own")


@pytest.mark.parametrize(("content", "secret"), [
    ("hunter2", "hunter2"), ("hunter2\n", "hunter2"), ("hunter2\r\n", "hunter2"),
    (" pass phrase ü \n", " pass phrase ü "),
])
def test_secrets_come_from_files_without_the_newline_at_the_end(toml, tmp_path, content, secret):
    path = tmp_path / "secret"
    path.write_bytes(content.encode())
    settings = load({row.file_variable: str(path) for row in SECRETS})
    assert settings == Settings(kafka=KafkaSettings(sasl_password=secret, ssl_key_password=secret),
                                registry=RegistrySettings(password=secret), qdrant=QdrantSettings(api_key=secret),
                                writer=WriterSettings(api_key=secret),
                                console=ConsoleSettings(api_keys=secret, token=secret))


def test_the_secrets_are_these():
    assert [row.file_variable for row in SECRETS] == [
        "FRESHET_KAFKA_SASL_PASSWORD_FILE", "FRESHET_KAFKA_SSL_KEY_PASSWORD_FILE", "FRESHET_REGISTRY_PASSWORD_FILE",
        "FRESHET_QDRANT_API_KEY_FILE", "FRESHET_WRITER_API_KEY_FILE",
        "FRESHET_CONSOLE_API_KEYS_FILE", "FRESHET_CONSOLE_TOKEN_FILE"]


@pytest.mark.parametrize("row", SECRETS, ids=lambda row: row.variable)
def test_a_secrets_file_that_cannot_be_used_is_named_with_its_variable(toml, tmp_path, row):
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "binary").write_bytes(b"hunter2\xff")
    for name, why in (("absent", "No such file"), (".", "Is a directory"), ("empty", "is empty"), ("binary", "UTF-8")):
        path = tmp_path / name
        with pytest.raises(SettingsError) as caught:
            load({row.file_variable: str(path)})
        for part in (row.file_variable, str(path), why):
            assert part in str(caught.value)
        assert "hunter2" not in whole_text(caught.value)
        assert "0xff" not in whole_text(caught.value)


@pytest.mark.parametrize("row", SECRETS, ids=lambda row: row.variable)
def test_a_secret_given_twice_is_an_error_that_shows_neither(toml, tmp_path, row):
    path = tmp_path / "secret"
    path.write_text("hunter2")
    with pytest.raises(SettingsError) as caught:
        load({row.variable: "hunter3", row.file_variable: str(path)})
    assert f"{row.variable} and {row.file_variable} are both set" in str(caught.value)
    assert "hunter" not in whole_text(caught.value)
    assert load({row.variable: "", row.file_variable: str(path)}) == load({row.variable: "hunter2"})


@pytest.mark.parametrize("text", [
    "[kafka]\nsasl_pasword = 'hunter2'\n",
    "[kafka]\nsasl_password = ['hunter2']\n",
    "[kafka]\nport = 'hunter2'\n",
    "kafka = 'hunter2'\n",
    "[qdrant]\napi_key = 'hunter2\n",
])
def test_no_error_text_quotes_a_secret(toml, text):
    with pytest.raises(SettingsError) as caught:
        load({}, toml(text))
    assert "hunter2" not in whole_text(caught.value)


def test_settings_made_in_code_quote_no_secret_either():
    with pytest.raises(ValidationError) as caught:
        KafkaSettings(sasl_password=["hunter2"])
    assert "hunter2" not in whole_text(caught.value)


def test_no_secret_is_printed(toml):
    settings = load({row.variable: "hunter2" for row in SECRETS})
    for shown in (settings, settings.kafka, settings.qdrant):
        assert "hunter2" not in f"{shown} {shown!r}"


def test_a_child_process_that_inherits_the_name_of_a_secrets_file_gets_the_secret_once(toml, tmp_path):
    path = tmp_path / "secret"
    path.write_text("hunter2\n")
    environ = {row.file_variable: str(path) for row in SECRETS}
    settings = load(environ)
    path.unlink()  # as where only the parent may read it
    assert load(environ | to_environ(settings)) == settings
