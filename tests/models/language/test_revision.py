"""A revision of a model by id is the one that is loaded, from a Hugging Face cache on disk, without a network."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from models.language.llm import LanguageModel
from schemas.errors import FreshetError
from schemas.settings import LlmSettings
from tests.models import tiny

ROOT = Path(__file__).parents[3]
OLD, NEW = "a" * 40, "b" * 40
LOAD = """
import sys
from pathlib import Path
from models.language.llm import LanguageModel
from schemas.errors import FreshetError
from schemas.settings import LlmSettings
for revision in sys.argv[1:]:
    try:
        model = LanguageModel.load(LlmSettings(name="shop/tiny", revision=revision, device="cpu"), Path("."))
        print(model.model_id, model.fingerprint)
    except FreshetError as error:
        print("refused", error)
"""


@pytest.mark.timeout(240)
def test_the_revision_that_is_pinned_is_loaded(tmp_path: Path) -> None:
    hub = tmp_path / "models--shop--tiny"
    for seed, commit in enumerate((OLD, NEW)):
        (hub / "snapshots" / commit).mkdir(parents=True)
        tiny.save(hub / "snapshots" / commit, seed=seed)
    (hub / "refs").mkdir()
    (hub / "refs" / "main").write_text(NEW)
    done = subprocess.run(
        [sys.executable, "-c", LOAD, "", OLD, NEW, "main", "nowhere"], cwd=ROOT, text=True, capture_output=True,
        check=True, env=os.environ | {"HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"})
    newest, old, new, main, nowhere = done.stdout.strip().splitlines()
    assert newest.split()[1] == new.split()[1] == main.split()[1] != old.split()[1]
    assert [line.split()[0] for line in (newest, old, new)] == ["shop/tiny", f"shop/tiny@{OLD}", f"shop/tiny@{NEW}"]
    assert nowhere.startswith("refused the language model 'shop/tiny@nowhere' cannot be loaded")


@pytest.mark.parametrize("name", ["gemma-3-270m", "folder"])
def test_a_revision_of_what_has_none_is_an_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    name = str(tmp_path / name) if name == "folder" else name
    with pytest.raises(FreshetError, match=r"FRESHET_LLM_REVISION=main pins a model by its Hugging Face id"):
        LanguageModel.load(LlmSettings(name=name, revision="main", device="cpu"), tmp_path)
