from __future__ import annotations

from dataclasses import replace

import pytest

from schemas.settings import RegistrySettings, Settings
from tests.registry import registry
from workers.cli.doctor import _registry


def test_the_registry_is_asked() -> None:
    assert "none" in _registry(Settings()).text
    with registry() as stub:
        settings = Settings(registry=RegistrySettings(url=stub.url))
        assert _registry(settings).state == "ok"
        for fault, state in (((200, b"<html>"), "broken"), ((401, b""), "broken"), ((503, b""), "warning")):
            stub.fault = fault
            assert _registry(settings).state == state
    found = _registry(replace(settings, registry=RegistrySettings(url="http://127.0.0.1:1")))
    assert (found.state, "does not answer" in found.text) == ("warning", True)


@pytest.mark.parametrize("url", ["registry:8081", "http://u:p@registry"])
def test_a_wrong_url_is_an_error_that_names_the_setting(url: str) -> None:
    from workers.cli.doctor import _guarded

    found = _guarded("registry", _registry, Settings(registry=RegistrySettings(url=url)))
    assert found.state == "broken"
    assert "FRESHET_REGISTRY_URL" in found.text
