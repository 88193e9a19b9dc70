import dataclasses

import pytest

from schemas.errors import SettingsError
from schemas.settings import load, rows, to_environ


def test_defaults_then_toml_then_environment(tmp_path):
    config = tmp_path / "freshet.toml"
    config.write_text('[kafka]\nport = 1234\npartitions = 8\n[refresh]\nttl_s = 60.0\n')
    settings = load({"FRESHET_KAFKA_PORT": "4321"}, config)
    assert (settings.kafka.port, settings.kafka.partitions, settings.refresh.ttl_s) == (4321, 8, 60.0)
    assert settings.refresh.alpha == 0.05


@pytest.mark.parametrize(
    ("environ", "names"),
    [
        ({"FRESHET_KAFKA_PROT": "1"}, "FRESHET_KAFKA_PROT"),
        ({"FRESHET_KAFKA_PORT": "ninety"}, "kafka.port"),
        ({"FRESHET_REFRESH_ALPHA": "1.5"}, "refresh.alpha"),
        ({"FRESHET_CONFIG": "/nowhere/freshet.toml"}, "nowhere"),
    ],
)
def test_a_mistake_is_an_error_that_names_it(environ, names):
    with pytest.raises(SettingsError, match=names):
        load(environ)


def test_an_unknown_field_of_the_file_is_named(tmp_path):
    config = tmp_path / "freshet.toml"
    config.write_text("[kafka]\nprot = 1\n")
    with pytest.raises(SettingsError, match="prot"):
        load({}, config)


def test_a_child_process_gets_the_same_settings(tmp_path):
    config = tmp_path / "c.toml"
    config.write_text(
        '[kafka]\nsasl_password = "p"\n[refresh]\nmin_history = 4\n'
        "[qdrant]\nprefer_grpc = true\n[fit]\ndropout = 0.25\n"
    )
    settings = load({"FRESHET_HOME": str(tmp_path)}, config)
    empty = tmp_path / "empty.toml"
    empty.write_text("")
    assert load(to_environ(settings), empty) == settings


def test_settings_are_frozen_secrets_do_not_print_and_every_setting_says_what_it_is():
    settings = load({"FRESHET_KAFKA_SASL_PASSWORD": "hunter2"})
    assert "hunter2" not in repr(settings)
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.kafka.port = 1
    assert all(row.description for row in rows())
    assert len({row.variable for row in rows()}) == len(rows())


def test_a_variable_that_compose_passes_through_empty_is_the_default():
    assert load({"FRESHET_KAFKA_PORT": ""}).kafka.port == 0
