from __future__ import annotations

import os
from pathlib import Path

import pytest

from schemas.artifacts import Card, write_card
from schemas.deployments import RECORD, WEIGHTS, Attempt, Deployed, Deployments
from schemas.errors import ArtifactError
from schemas.messages import ModelUpdate


@pytest.fixture
def deployments(tmp_path: Path) -> Deployments:
    out = Deployments(tmp_path)
    for number, version in enumerate(("m1", "m2")):
        with out.registry.publish(version) as folder:
            write_card(folder, Card(model_version=version, created_at=100.0 * (number + 1), data_hash="", settings={},
                                    split_time=0, files={}))
        os.utime(out.registry.folder / version / "card.json", (number, number))
    out.registry.select("m2")
    return out


def attempt(name: str, published: bool = True) -> Attempt:
    return Attempt(name=name, base="m2", created_at=300.0, published=published, reason="because")


def deploy(deployments: Deployments, name: str, at: float) -> ModelUpdate:
    update = ModelUpdate(model_version=f"m2+{name}", adapter=f"adapters/{name}", published_at=at,
                         withdrawn=deployments.in_use().withdrawn)
    deployments.deploy(Deployed(update=update, by="alignment"))
    return update


def test_each_rollback_goes_back_one_version(deployments: Deployments) -> None:
    a, b = deploy(deployments, "a", 301.0), deploy(deployments, "b", 302.0)
    assert deployments.in_use() == b
    back = deployments.roll_back(303.0, "worse")
    assert (back.model_version, back.adapter, back.withdrawn) == (a.model_version, a.adapter, [b.model_version])
    c = deploy(deployments, "c", 304.0)
    assert c.withdrawn == [b.model_version]
    assert deployments.roll_back(305.0).withdrawn == [b.model_version, c.model_version]
    back = deployments.roll_back(306.0)
    assert (back.model_version, back.adapter) == ("m2", None)
    assert back.withdrawn == ["m2+a", "m2+b", "m2+c"]
    assert deployments.in_use().model_version == "m2"
    assert deployments.roll_back(307.0).model_version == "m1"
    assert deployments.registry.current() == "m1"
    with pytest.raises(ArtifactError, match="no version before"):
        deployments.roll_back(308.0)
    assert deployments.select("m2", 309.0).model_version == "m2"  # its adapters were rolled back


def test_selecting_a_version_restores_its_adapter(deployments: Deployments) -> None:
    update = deploy(deployments, "a", 301.0)
    assert deployments.select("m1", 302.0).model_version == "m1"
    assert deployments.in_use().model_version == "m1"
    back = deployments.select("m2", 303.0)
    assert (back.model_version, back.adapter, back.published_at) == (update.model_version, update.adapter, 303.0)


def test_log_lines_from_before_the_fit_and_damaged_lines_are_ignored(deployments: Deployments) -> None:
    deploy(deployments, "a", 150.0)  # before m2 was fitted
    assert deployments.in_use().model_version == "m2"
    deploy(deployments, "b", 301.0)
    with (deployments.registry.folder / "deployed.jsonl").open("a") as log:
        log.write('{"update": {"model_ver')
    deploy(deployments, "c", 302.0)
    assert deployments.in_use().model_version == "m2+c"


def test_a_published_attempt_has_weights_and_a_rejected_one_only_a_record(deployments: Deployments) -> None:
    with deployments.scratch() as scratch:
        with pytest.raises(ArtifactError, match="lacks"):
            deployments.record(attempt("a"), scratch)
        for name in (*WEIGHTS, "README.md"):
            (scratch / name).write_text("x")
        folder = deployments.record(attempt("a"), scratch)
    assert {path.name for path in folder.iterdir()} == {*WEIGHTS, RECORD}
    with deployments.scratch() as scratch:
        (scratch / WEIGHTS[0]).write_text("x")
        folder = deployments.record(attempt("b", published=False), scratch)
    assert [path.name for path in folder.iterdir()] == [RECORD]
    with pytest.raises(ArtifactError, match="already exists"):
        deployments.record(attempt("b", published=False))
    assert [recorded.name for recorded in deployments.attempts()] == ["a", "b"]
    assert {path.name for path in deployments.folder.iterdir()} == {"a", "b"}
    assert deployments.registry.versions() == ["m1", "m2"]  # adapters are not fitted versions


@pytest.mark.parametrize("mask", [0o022, 0o027])
def test_roles_of_another_user_can_read_models_and_what_is_in_use(
    tmp_path: Path, mask: int, request: pytest.FixtureRequest,
) -> None:
    before = os.umask(mask)
    request.addfinalizer(lambda: os.umask(before))
    made: Deployments = request.getfixturevalue("deployments")
    with made.scratch() as scratch:
        for name in WEIGHTS:
            (scratch / name).touch(0o600)  # as safetensors makes it
        made.record(attempt("a"), scratch)
    made.record(attempt("b", published=False))
    deploy(made, "a", 301.0)
    modes = {path.relative_to(tmp_path / "models").as_posix(): path.stat().st_mode & 0o777
             for path in (tmp_path / "models").rglob("*")}
    folders = {"m1", "m2", "adapters", "adapters/a", "adapters/b"}
    assert modes.keys() >= folders | {"CURRENT", "m2/card.json", f"adapters/a/{WEIGHTS[1]}", "deployed.jsonl"}
    assert modes == {name: (0o777 if name in folders else 0o666) & ~mask for name in modes}
