"""What all tests share."""

from __future__ import annotations

import pytest
from hypothesis import settings

# Machines are shared: how long an example took there says nothing of this code.
settings.register_profile("freshet", deadline=None)
settings.load_profile("freshet")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give tests of real processes a second and a third try, reported as "rerun".

    They start brokers and models on machines that others share, and a start that took a minute there says nothing of
    this code. A third failure in a row does. Unit and property tests get no second try, and none does with
    `-p no:rerunfailures`.
    """
    if not config.pluginmanager.hasplugin("rerunfailures"):
        return
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.flaky(reruns=2, reruns_delay=2))
