from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from schemas.artifacts import Card, write_card
from schemas.deployments import RECORD, WEIGHTS, Attempt, Deployed, Deployments
from schemas.errors import ArtifactError, NewerFormatError
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
    update = deployments.publish_adapter(attempt(name), at)
    assert update is not None
    for weights in WEIGHTS:
        path = deployments.registry.folder / "adapters" / name / weights
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
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


def log_line(deployments: Deployments, deployed: Deployed | str) -> None:
    line = deployed if isinstance(deployed, str) else deployed.model_dump_json() + "\n"
    with (deployments.registry.folder / "deployed.jsonl").open("a") as log:
        log.write(line)


def test_log_lines_from_before_the_fit_and_damaged_lines_are_ignored(deployments: Deployments) -> None:
    log_line(deployments, Deployed(by="alignment", update=ModelUpdate(
        model_version="m2+old", adapter="adapters/old", published_at=150.0)))  # before m2 was fitted
    assert deployments.in_use().model_version == "m2"
    deploy(deployments, "b", 301.0)
    log_line(deployments, '{"update": {"model_ver')
    deploy(deployments, "c", 302.0)
    assert deployments.in_use().model_version == "m2+c"


def add(deployments: Deployments, version: str, created_at: float, sequence: int = 0) -> None:
    with deployments.registry.publish(version) as folder:
        (folder / "weights").write_text("w")
        write_card(folder, Card(model_version=version, created_at=created_at, sequence=sequence, data_hash="",
                                settings={}, split_time=0, files={}))


def test_a_restored_copy_has_the_order_of_the_cards_whatever_the_times_of_its_files(deployments: Deployments) -> None:
    add(deployments, "a3", 300.0)
    deployments.registry.select("m2")
    for number, version in enumerate(("a3", "m2", "m1")):  # as a copy may leave them
        os.utime(deployments.registry.folder / version / "card.json", (number, number))
    assert deployments.registry.versions() == ["m1", "m2", "a3"]
    assert deployments.roll_back(400.0).model_version == "m1"


def test_a_number_in_the_card_orders_fits_of_a_machine_whose_clock_is_behind(deployments: Deployments) -> None:
    for name, created_at in (("x", 50.0), ("b", 10.0), ("a", 20.0)):
        add(deployments, name, created_at, deployments.registry.next_sequence())
    assert deployments.registry.versions() == ["m1", "m2", "x", "b", "a"]


def test_a_rollback_keeps_its_reason_and_author_and_is_not_chosen_again(deployments: Deployments) -> None:
    add(deployments, "m3", 300.0)
    deployments.fitted("m3", 301.0)
    back = deployments.roll_back(302.0, "clicks fell", "ann")
    assert (back.model_version, back.withdrawn) == ("m2", ["m3"])
    line = deployments.log()[-1]
    assert (line.by, line.left, line.author, line.reason) == ("rollback", "m3", "ann", "clicks fell")
    assert deployments.withdrawn()["m3"] == line
    add(deployments, "m4", 310.0)
    deployments.fitted("m4", 311.0)
    assert deployments.roll_back(312.0).model_version == "m2"  # not m3
    chosen = deployments.select("m3", 313.0)
    assert (chosen.model_version, chosen.withdrawn) == ("m3", ["m4"])
    assert list(deployments.withdrawn()) == ["m4"]


def test_a_rollback_undoes_a_selection(deployments: Deployments) -> None:
    add(deployments, "m3", 300.0)
    deployments.fitted("m3", 301.0)
    deployments.select("m1", 302.0)
    assert deployments.roll_back(303.0).model_version == "m3"


def test_damaged_and_harmful_versions_are_passed_over_and_nothing_changes_without_another(
    deployments: Deployments,
) -> None:
    for number in (3, 4, 5):
        add(deployments, f"m{number}", 100.0 * number)
        deployments.fitted(f"m{number}", 100.0 * number + 1)
    (deployments.registry.folder / "m4" / "weights").write_text("other")
    assert deployments.roll_back(600.0, harmful={"m3"}).model_version == "m2"
    before = deployments.log()
    with pytest.raises(ArtifactError, match=r"no version before it that can be used; .*m4/weights is missing or does"):
        deployments.roll_back(601.0, harmful={"m1", "m3"})
    assert (deployments.in_use().model_version, deployments.log()) == ("m2", before)


def test_an_adapter_of_a_model_that_was_replaced_waits_until_that_is_in_use_again(deployments: Deployments) -> None:
    deployments.select("m1", 302.0)
    assert deployments.publish_adapter(attempt("a"), 303.0) is None
    assert deployments.in_use().model_version == "m1"
    assert deployments.select("m2", 304.0).model_version == "m2+a"


def test_changes_follow_each_other_whatever_the_clocks_say(deployments: Deployments) -> None:
    first = deployments.select("m1", 9e9)
    second = deployments.select("m2", 5.0)  # on a machine whose clock is behind
    assert second.published_at > first.published_at
    assert deployments.in_use().model_version == "m2"


def test_a_message_is_taken_over_if_it_is_newer_than_everything_here(deployments: Deployments) -> None:
    own = deployments.select("m1", 300.0)
    assert not deployments.take_over(own)
    assert not deployments.take_over(ModelUpdate(model_version="m2", published_at=299.0))
    for missing in ("m9", "m2+a", "../m2"):
        adapter = "adapters/a" if "+" in missing else None
        with pytest.raises(ArtifactError):
            deployments.take_over(ModelUpdate(model_version=missing, adapter=adapter, published_at=310.0))
    assert deployments.in_use().model_version == "m1"
    (deployments.registry.folder / "adapters" / "a").mkdir(parents=True)
    foreign = ModelUpdate(model_version="m2+a", adapter="adapters/a", published_at=310.0)
    assert deployments.take_over(foreign)
    assert not deployments.take_over(foreign)
    assert deployments.in_use() == foreign
    assert deployments.take_over(ModelUpdate(model_version="m2", published_at=311.0))
    assert deployments.in_use().adapter is None


def test_the_pointer_decides_where_a_crash_left_it_behind_the_log(deployments: Deployments) -> None:
    log_line(deployments, Deployed(by="select", update=ModelUpdate(model_version="m1", published_at=300.0)))
    assert deployments.in_use().model_version == "m2"
    assert deployments.roll_back(301.0).model_version == "m1"


def test_a_card_or_a_log_of_a_newer_release_is_refused(deployments: Deployments) -> None:
    add(deployments, "m3", 300.0)
    path = deployments.registry.folder / "m3" / "card.json"
    path.write_text(path.read_text().replace('"schema_version": 1', '"schema_version": 2'))
    with pytest.raises(NewerFormatError, match=r"format 2, newer than this release's 1; run the newer release"):
        deployments.select("m3", 301.0)
    for line in ('{"schema_version": 2, "by": "magic"}\n', '{"schema_version": 2, "by": "select", "update": '
                 '{"model_version": "m1", "published_at": 1.0}}\n'):
        (deployments.registry.folder / "deployed.jsonl").write_text(line)
        with pytest.raises(NewerFormatError, match="run the newer release"):
            deployments.in_use()


def test_two_programs_change_what_is_in_use_one_after_the_other(deployments: Deployments) -> None:
    def change(number: int) -> float:
        return Deployments(deployments.registry.folder.parent).select(f"m{number % 2 + 1}", 300.0).published_at

    with ThreadPoolExecutor(4) as pool:
        times = list(pool.map(change, range(40)))
    assert len(set(times)) == 40
    assert [line.update.published_at for line in deployments.log()] == sorted(times)
    assert deployments.registry.current() == deployments.log()[-1].update.model_version


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
