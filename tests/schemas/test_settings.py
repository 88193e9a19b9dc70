import dataclasses
from pathlib import Path

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from schemas.errors import SettingsError
from schemas.settings import Settings, load, rows, to_environ

ADDRESS = "FRESHET_KAFKA_BOOTSTRAP"


def test_defaults_then_toml_then_environment(toml):
    config = toml("[kafka]\nport = 1234\npartitions = 8\n[refresh]\nttl_s = 60.0\n")
    settings = load({"FRESHET_KAFKA_PORT": "4321"}, config)
    assert (settings.kafka.port, settings.kafka.partitions, settings.refresh.ttl_s) == (4321, 8, 60.0)
    assert settings.refresh.alpha == 0.05


def test_the_file_is_the_one_named_else_the_one_in_the_working_folder(toml, tmp_path):
    assert load({}) == Settings()
    (tmp_path / "freshet.toml").write_text("[kafka]\nport = 1\n")
    named = toml("[kafka]\nport = 2\n")
    assert load({}).kafka.port == load({"FRESHET_CONFIG": ""}).kafka.port == 1
    assert load({"FRESHET_CONFIG": str(named)}).kafka.port == 2
    assert load({"FRESHET_CONFIG": "/nowhere"}, named).kafka.port == 2


def test_the_environment_is_the_processs_own_by_default(toml, monkeypatch):
    monkeypatch.setenv(ADDRESS, "kafka:9092")
    assert load().kafka.bootstrap == "kafka:9092"


def test_variables_of_other_programs_are_left_alone(toml):
    assert load({"KAFKA_PORT": "1", "freshet_kafka_port": "1", "PATH": "/bin"}) == Settings()


def test_every_setting_can_be_set_by_its_variable(toml):
    schema = TypeAdapter(Settings).json_schema()["$defs"]
    assert {(row.section, row.name) for row in rows() if row.section} == {
        (one.name, name) for one in dataclasses.fields(Settings) if one.name != "home"
        for name in schema[type(getattr(Settings(), one.name)).__name__]["properties"]}
    for row in rows():
        value = {"FRESHET_EVENTS_FIELDS": "user_id=7", "FRESHET_EVENTS_MEANINGS": "user_id=taken:7",
                 "FRESHET_RANKING_MOST": "user_id=7", "FRESHET_RANKING_BOOST": "user_id=7"}.get(
            row.variable, row.default if row.default not in (None, "") else "7")
        settings = load({row.variable: str(value)})
        found = getattr(getattr(settings, row.section), row.name) if row.section else str(settings.home)
        assert str(found) in {str(value), "7.0", "{'user_id': '7'}", "{'user_id': 'taken:7'}", "{'user_id': 7}",
                              "{'user_id': 7.0}"}, row.variable


@pytest.mark.parametrize(
    ("environ", "names"),
    [
        ({"FRESHET_KAFKA_PROT": "1"}, "FRESHET_KAFKA_PROT"),
        ({"FRESHET_NONSENSE": ""}, "FRESHET_NONSENSE"),
        ({"FRESHET_KAFKA": '{"port": 1}'}, "FRESHET_KAFKA "),
        ({"FRESHET_kafka_port": "1"}, "FRESHET_kafka_port"),
        ({"FRESHET_KAFKA_PORT_FILE": "/run/port"}, "FRESHET_KAFKA_PORT_FILE"),  # not a secret
        ({"FRESHET_KAFKA_PORT": "ninety"}, "kafka.port"),
        ({"FRESHET_QDRANT_PREFER_GRPC": "perhaps"}, "qdrant.prefer_grpc"),
        ({"FRESHET_REFRESH_ALPHA": "1.5"}, "refresh.alpha"),
        ({"FRESHET_REFRESH_POLICY": "weekly"}, "refresh.policy.*nightly"),
        ({"FRESHET_CONFIG": "/nowhere/freshet.toml"}, "nowhere.*FRESHET_CONFIG"),
        ({"FRESHET_CONFIG": "/"}, r"/ \(FRESHET_CONFIG\) cannot be read"),
    ],
)
def test_a_mistake_is_an_error_that_names_it(toml, environ, names):
    with pytest.raises(SettingsError, match=names):
        load(environ)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("[kafka]\nprot = 1\n", "kafka.prot"),
        ("[kafak]\nport = 1\n", "kafak"),
        ("kafka = 3\n", "kafka: Input should be a dictionary"),
        ("[kafka]\nport = []\n", "kafka.port"),
        ('[llm]\nname = ""\n', "llm.name"),  # a variable could not pass it on: there empty means unset
        ("[kafka\n", "of-the-test.toml is not TOML"),
    ],
)
def test_a_mistake_in_the_file_is_named_also_where_a_variable_sets_the_section(toml, text, names):
    config = toml(text)
    for environ in ({}, {ADDRESS: "kafka:9092"}):
        with pytest.raises(SettingsError, match=names):
            load(environ, config)


def test_a_file_that_is_not_utf8_is_no_toml(tmp_path):
    (tmp_path / "freshet.toml").write_bytes(b"[kafka]\nbootstrap = '\xff'\n")
    with pytest.raises(SettingsError, match="is not TOML"):
        load({}, tmp_path / "freshet.toml")


def test_a_variable_that_compose_passes_through_empty_is_the_default(toml):
    empty = {row.variable: "" for row in rows()} | {row.file_variable: "" for row in rows() if row.secret}
    assert load(empty) == Settings()


def test_settings_are_frozen_and_every_setting_says_what_it_is():
    with pytest.raises(dataclasses.FrozenInstanceError):
        load({}).kafka.port = 1
    assert all(row.description for row in rows())
    assert len({row.variable for row in rows()}) == len(rows())


def test_a_child_process_gets_the_same_settings(toml):
    settings = load({"FRESHET_HOME": "/somewhere"}, toml(
        '[kafka]\nsasl_password = "p"\n[refresh]\nmin_history = 4\n'
        "[qdrant]\nprefer_grpc = true\n[fit]\ndropout = 0.25\n"
    ))
    assert load(to_environ(settings)) == settings


def strategy(spec):
    """Values that a setting's JSON Schema allows. No NaN: it does not equal itself."""
    if "anyOf" in spec:
        return st.one_of([strategy(option) for option in spec["anyOf"]])
    if "enum" in spec:
        return st.sampled_from(spec["enum"])
    if "pattern" in spec:
        return st.from_regex(spec["pattern"], fullmatch=True, alphabet=st.characters(codec="ascii"))
    low, high = spec.get("minimum"), spec.get("maximum")
    above, below = spec.get("exclusiveMinimum"), spec.get("exclusiveMaximum")
    return {
        "integer": lambda: st.integers(low, high),
        "number": lambda: st.floats(
            low if above is None else above, high if below is None else below, allow_nan=False,
            exclude_min=above is not None, exclude_max=below is not None),
        "string": lambda: st.dates() if spec.get("format") == "date" else st.from_regex(
            spec["pattern"].strip("^$"), fullmatch=True).filter(lambda text: len(text) <= spec["maxLength"]) \
            if "pattern" in spec else st.text(min_size=spec.get("minLength", 0), max_size=spec.get("maxLength")),
        "object": lambda: st.dictionaries(
            st.sampled_from(spec["propertyNames"]["enum"]) if "propertyNames" in spec else st.text("abc", min_size=1),
            st.text("abc.", min_size=1, max_size=9) if spec["additionalProperties"].keys() & {"maxLength"} else
            strategy(spec["additionalProperties"])),
        "boolean": st.booleans,
        "null": st.none,
    }[spec["type"]]()


def all_settings():
    """Any settings that can be loaded."""
    schema = TypeAdapter(Settings).json_schema()["$defs"]
    sections = {}
    for one in dataclasses.fields(Settings):
        if one.name != "home":
            kind = type(getattr(Settings(), one.name))
            fields = {name: strategy(spec) for name, spec in schema[kind.__name__]["properties"].items()}
            sections[one.name] = st.fixed_dictionaries({}, optional=fields).map(lambda given, kind=kind: kind(**given))
    return st.builds(Settings, home=st.text().map(Path), **sections)


@hypothesis.settings(deadline=None)
@given(all_settings())
def test_any_settings_survive_the_environment_of_a_child(tmp_path_factory, settings):
    empty = tmp_path_factory.getbasetemp() / "empty.toml"
    empty.touch()
    assert load(to_environ(settings), empty) == settings
