from dataclasses import replace

import numpy as np
import orjson
import pytest
from typer.testing import CliRunner

from models.measuring.metrics import ndcg
from schemas.errors import DataError, FreshetError
from schemas.settings import FitSettings, Settings, StateSettings
from workers.cli import app
from workers.terminal.stages import Stages
from workers.training.evaluate import EvaluationRun, Evaluator, read


def write(folder):
    rng = np.random.default_rng(0)
    lines = ["user_id,item_id,timestamp"]
    for user in range(30):
        start = int(rng.integers(24))
        lines += [f"u{user},i{(start + step) % 24},{1_600_000_000 + user + 100 * step}" for step in range(12)]
    folder.mkdir()
    (folder / "events.csv").write_text("\n".join(lines) + "\n")
    (folder / "items.jsonl").write_text("".join(f'{{"item_id": "i{i}", "title": "thing {i}"}}\n' for i in range(24)))
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("evaluate")


@pytest.fixture(scope="module")
def folder(place):
    return write(place / "shop")


@pytest.fixture(scope="module")
def evaluator(place, folder):
    settings = replace(Settings(), home=place / "home", state=StateSettings(history=8), fit=FitSettings(
        dim=8, layers=1, epochs=2, knowledge_epochs=1))
    with Stages() as stages:
        yield Evaluator(settings, folder, stages)


def test_systems_are_measured_on_events_that_are_evidence(place, folder):
    noisy = place / "noisy"
    noisy.mkdir()
    lines = (folder / "events.csv").read_text().splitlines()
    more = [f"u{user},i{user % 24},{1_500_000_000 + user},{kind}" for user in range(30) for kind in ("view", "return")]
    rows = [lines[0] + ",event_type", *(f"{line},view" for line in lines[1:]), *more]
    (noisy / "events.csv").write_text("\n".join(rows))
    (noisy / "items.jsonl").write_bytes((folder / "items.jsonl").read_bytes())
    with Stages() as stages:
        found = Evaluator(replace(Settings(), home=place / "home"), noisy, stages).dataset
    assert (len(found.events), found.skipped["events_no_evidence"]) == (30 * 12, 60)


def test_a_finished_run_is_read_instead_of_repeated(evaluator, monkeypatch):
    wanted = EvaluationRun("dense", "leave_one_out", seed=3)
    first = evaluator.run(wanted)
    assert first["dataset"] == "shop"
    assert first["metrics"]["n"] == 30
    monkeypatch.setattr("models.systems.training.train", lambda *_: pytest.fail("it was trained again"))
    assert evaluator.run(wanted)["metrics"] == first["metrics"]
    path = evaluator.path(wanted)
    assert read(path)["training"]["epoch"] >= 1
    path.write_text("{")  # a damaged file does not count as a result
    assert read(path) is None


def test_the_file_of_a_run_depends_on_every_parameter(evaluator):
    wanted = EvaluationRun("dense", "leave_one_out", seed=3)
    others = [replace(wanted, seed=4), replace(wanted, protocol="stream_time"), replace(wanted, control="extra-steps"),
              replace(wanted, ties="file")]
    assert len({evaluator.path(run) for run in [wanted, *others]}) == 5
    longer = Evaluator.__new__(Evaluator)
    longer.__dict__ |= evaluator.__dict__ | {
        "settings": replace(evaluator.settings, fit=replace(evaluator.settings.fit, epochs=3))}
    assert longer.path(wanted) != evaluator.path(wanted)
    moved = Evaluator.__new__(Evaluator)
    moved.__dict__ |= evaluator.__dict__ | {"settings": replace(
        evaluator.settings, llm=replace(evaluator.settings.llm, device="cuda", batch=64))}
    assert moved.path(wanted) == evaluator.path(wanted)


def test_a_run_is_compared_with_its_reference_event_by_event(evaluator):
    plain = EvaluationRun("dense", "stream_time", seed=1)
    control = EvaluationRun("dense", "stream_time", "extra-steps", 1)
    one, other = evaluator.run(plain), evaluator.run(control)
    assert evaluator.gain(plain) is None
    gain, low, high = evaluator.gain(control)
    columns = evaluator.ranks(control)  # the reference is dense and the closed form
    assert not np.array_equal(columns["reference_rank"], evaluator.ranks(plain)["rank"])
    known = evaluator.predicted(control, columns["row"]).known
    assert gain == pytest.approx(other["metrics"]["ndcg_at_10"] - ndcg(columns["reference_rank"][known]).mean())
    assert low <= gain <= high
    rows = evaluator.ranks(plain)["row"]
    events = evaluator.predicted(plain, rows)
    assert (np.diff(events.user) >= 0).all()  # rows are by user
    assert len(events.event) == len(set(events.event)) == len(rows)
    assert events.known.sum() == one["metrics"]["n"]
    assert 0 <= other["metrics"]["hits_lost"] <= 1
    with pytest.raises(DataError, match="has not been run"):
        evaluator.ranks(replace(plain, seed=99))


def test_the_error_for_a_wrong_name_lists_the_valid_names(evaluator):
    with pytest.raises(FreshetError, match="there are dense"):
        evaluator.run(EvaluationRun("sense", "stream_time"))
    with pytest.raises(FreshetError, match="leave_one_out"):
        evaluator.run(EvaluationRun("dense", "last"))
    with pytest.raises(FreshetError, match="there are strict, shuffled, file"):
        evaluator.run(EvaluationRun("dense", "stream_time", ties="loose"))


def test_the_command_prints_tables_and_writes_json(evaluator, folder, place, monkeypatch):
    for name, value in {"HOME": place / "home", "STATE_HISTORY": 8, "FIT_DIM": 8, "FIT_LAYERS": 1, "FIT_EPOCHS": 2,
                        "FIT_KNOWLEDGE_EPOCHS": 1}.items():
        monkeypatch.setenv(f"FRESHET_{name}", str(value))
    out = place / "result.json"
    done = CliRunner().invoke(app, ["evaluate", "--data", str(folder), "--protocol", "leave-one-out", "--seed", "3",
                                    "--json", str(out)])
    assert done.exit_code == 0, done.output
    assert "item seen 5-19" in done.output
    assert orjson.loads(out.read_bytes())["metrics"]["n"] == 30
    wrong = CliRunner().invoke(app, ["evaluate", "--data", str(folder), "--protocol", "leave-two-out"])
    assert isinstance(wrong.exception, FreshetError)
    listed = CliRunner().invoke(app, ["evaluate", "--list"])
    assert "--control extra-steps" in listed.output
