from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from benchmarks.refresh.run import main
from schemas.settings import to_environ
from tests.workers.fitted import publish, settings_in


def test_the_cost_of_a_refresh_is_measured_on_the_newest_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:
    settings = settings_in(tmp_path)
    for name, value in to_environ(settings).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit, match="freshet fit"):
        main([])
    publish(settings, "m1")
    publish(settings, "m2")
    capsys.readouterr()
    main(["--users", "6", "--json"])
    (run,) = orjson.loads(capsys.readouterr().out)
    assert (run["system"], run["model_version"], run["vectors"], run["numbers"]) == ("freshet", "m2", 3, 48)
    assert run["finite"] == 1.0
    assert run["ms_alone"] > 0
    main(["--users", "6"])
    assert "| freshet |" in capsys.readouterr().out
