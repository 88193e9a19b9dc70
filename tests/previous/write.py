"""Writes one of everything that Freshet stores or sends, as this release writes it.

`python -m tests.previous.write` in the root of the repository replaces `tests/previous/files`. Run it when a release is
made, on that release: from then on the tests read what it wrote.
"""

from __future__ import annotations

import base64
import os
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import orjson
from pydantic import BaseModel

from schemas.artifacts import write_card
from schemas.calibration import Recalibration
from schemas.catalogue.item import CatalogueItem
from schemas.catalogue.update import Alike, ItemUpdate
from schemas.codec import dead_letter, encode
from schemas.deployments import RECORD, Attempt, Deployments
from schemas.events import BehaviourEvent
from schemas.messages import (
    Erasure,
    Judgement,
    KnowledgeRequest,
    KnowledgeUpdate,
    Margin,
    ModelUpdate,
    Recommendation,
    ScoredItem,
    UserSeen,
)
from schemas.settings import Settings, rows
from schemas.topics import TOPICS
from streams.decisions.planner import Plan, Planner, States
from streams.detection.pooled import MarginBatch, Pools, fold
from streams.detection.pooled import dumps as dump_pools
from streams.profile.state import dumps
from tests.streams import cases
from tests.workers import fitted
from workers.roles.ranking.ranker import Ranker
from workers.store.point import KnowledgePoint, payload, vectors

FILES = Path(__file__).parent / "files"
ITEMS = ["i3", "i7", "i20"]  # the history that `expected.json` ranks


def user() -> tuple[States, dict[str, BaseModel]]:
    """Return the state of a user in whose life everything happened, and the messages that streams sent for them."""
    stage = Planner(cases.item_vectors(), cases.CALIBRATION, cases.settings(cooldown=0), "m1")
    states: States = {}
    sent: dict[str, BaseModel] = {}

    def note(plan: Plan) -> Plan:
        for name, messages in (("ranking-requests", plan.ranking), ("knowledge-requests", plan.knowledge),
                               ("alignment-samples", plan.alignment)):
            for message in messages:
                if name != "ranking-requests" or message.judged or name not in sent:  # type: ignore[attr-defined]
                    sent[name] = message
        return plan

    def judged(counts: range, value: float, version: int) -> None:
        judgement = Judgement(
            user_id="u", model_version="m1", knowledge_model_version="m1+a", codes=[1, 2], event_time=1.0,
            judged_at=2.5,
            margins=[Margin(event_id=f"e{c - 1}", item_id=f"i{c - 1}", count=c, value=value, knowledge_version=version)
                     for c in counts])
        sent["judgements"] = judgement
        note(stage.judgements(states, [judgement], 2e9))

    def answered(request: KnowledgeRequest) -> None:
        update = KnowledgeUpdate(
            user_id="u", version=request.version, model_version="m1+a", reason=request.reason, count=request.count,
            event_time=request.event_time, history_hash="0123456789abcdef", caused_at=request.caused_at,
            generated_at=2e9)
        sent["knowledge-updates"] = update
        note(stage.updates(states, [(update, 2e9)], 2e9))

    answered(note(stage.events(states, [cases.event(n) for n in range(4)], 2e9)).knowledge[-1])
    note(stage.events(states, [cases.event(n) for n in range(4, 30)], 2e9))
    judged(range(5, 31), -9.0, 1)  # contradicted
    if states["u"].pending is not None:
        answered(note(stage.events(states, [cases.event(29)], 2e9)).knowledge[-1])
    note(stage.events(states, [cases.event(n) for n in (30, 31, 32)], 2e9))
    judged(range(31, 34), 0.4, 2)
    late = cases.event(34, time=28.5)
    note(stage.events(states, [late, cases.event(33), cases.event(33)], 2e9))
    note(stage.events(states, [cases.event(n, item=5) for n in range(35, 60)], 2e9))
    return states, sent


def messages(sent: dict[str, BaseModel]) -> dict[str, BaseModel]:
    """Return one message of every topic."""
    letter = dead_letter("behaviour-events", 1, 41, "empty value", value=b"", key=b"u", role="streams", failed_at=2e9)
    recommendation = Recommendation(
        user_id="u", items=[ScoredItem(item_id="i1", score=-1.5)], reference=["i1", "i2"], source="fused",
        reason="event", lagrange=1.25, kl=0.02, epsilon=0.1, knowledge_version=2, knowledge_age_s=3.0,
        knowledge_behind=1, model_version="m1", event_time=30.0, count=31, caused_at=2e9, requested_at=2e9,
        ranked_at=2e9, experiment="autumn", arm="treatment")
    return sent | {
        "behaviour-events": BehaviourEvent(user_id="u", item_id="i1", event_time=30.0, event_type="view"),
        "recommendations": recommendation, "dead-letters": letter,
        "erasures": Erasure(user_id="u", requested_at=2e9),
        "user-seen": UserSeen(user_id="u", allow=["sale"], keep=True),
        "catalogue": CatalogueItem(
            item_id="i1", title="a thing", attributes=["kind"], text="more of it", available=False, labels=["new"],
            price=9.5),
        "item-updates": ItemUpdate(
            item_id="i1", version=7, about="0123456789abcdef", encoder="e", similar=[Alike(item_id="i2", score=0.5)],
            caused_at=2e9, written_at=2e9),
        "model-updates": ModelUpdate(
            model_version="m1+a", adapter="adapters/a", withdrawn=["m1+b"], published_at=2e9)}


def write_models(home: Path) -> None:
    """Fill a registry: a version that was rolled back, one in use with an adapter, and a recalibrated threshold."""
    settings = replace(fitted.settings_in(home), home=home)
    settings = replace(settings, llm=replace(settings.llm, name="llm"))  # the card must not name this machine's folder
    here = Path.cwd()
    os.chdir(home)
    try:
        artifact = fitted.publish(settings, "m1", created_at=1e9)
    finally:
        os.chdir(here)
    deployments = Deployments(home)
    with deployments.registry.publish("m2") as folder:  # of which only the card is needed
        write_card(folder, artifact.card.model_copy(update={"model_version": "m2", "created_at": 1e9 + 1}))
    deployments.registry.select("m2")
    artifact.recalibration.write_text(Recalibration(
        model_version="m1", calibration_hash=artifact.card.files["calibration.json"], data_hash="d",
        calibrated_at=2e9, drift_threshold=7.0, drift_false_alarm_every=400.0).model_dump_json())
    roll_back_and_align(deployments)
    shutil.rmtree(home / "llm")
    shutil.rmtree(home / "cache", ignore_errors=True)


def roll_back_and_align(deployments: Deployments) -> None:
    """Roll the second version back, then put an adapter into use."""
    deployments.roll_back(2e9, "uplift fell", "ann")
    attempt = Attempt(name="a", base="m1", created_at=2e9, published=True, reason="better", figures={"gain": 0.1})
    (deployments.folder / "a").mkdir(parents=True)
    (deployments.folder / "a" / RECORD).write_text(attempt.model_dump_json())
    deployments.publish_adapter(attempt, 2e9 + 1)


def point() -> KnowledgePoint:
    """Return a user's knowledge."""
    numbers = np.random.default_rng(5).normal(size=(3, fitted.DIM))
    made = (numbers / np.linalg.norm(numbers, axis=1, keepdims=True)).astype(np.float16)
    return KnowledgePoint(
        user_id="u", version=2, model_version="m1+a", vectors=made, pooled=made.mean(0).astype(np.float32),
        history_hash="0123456789abcdef", reason="drift", generated_at=2e9, event_time=30.0, count=31, codes=(1, 2, 3),
        items=(4, 9), weights=(0.5, 0.25))


def toml() -> str:
    """Return a settings file with every setting, at its default."""
    out, section = [f'home = "{Settings().home}"'], ""
    for row in rows():
        if row.section != section and row.section:
            section = row.section
            out.append(f"\n[{section}]")
        value = getattr(getattr(Settings(), row.section), row.name) if row.section else None
        if value is not None and row.section:
            out.append(f"{row.name} = {orjson.dumps(value).decode()}")
    return "\n".join(out) + "\n"


def write(folder: Path) -> None:
    """Write everything into an empty folder."""
    states, sent = user()
    (folder / "state.msgpack").write_bytes(dumps(states["u"]))
    changelog = {"key": b"u", "value": dumps(states["u"])}
    (folder / "changelog-record.json").write_bytes(orjson.dumps(
        {name: base64.b64encode(value).decode() for name, value in changelog.items()}))
    (folder / "messages").mkdir()
    for name, message in messages(sent).items():
        (folder / "messages" / f"{name}.json").write_bytes(encode(message))
    assert {path.stem for path in (folder / "messages").iterdir()} == set(TOPICS)
    pools = Pools()
    fold(pools, [MarginBatch(f"u{n}", "m1", [1, 2], [1, 2], [-0.4, 0.1]) for n in range(50)], 1.0, 0.01, 8)
    (folder / "guard-evidence.msgpack").write_bytes(dump_pools(pools))
    held = point()
    (folder / "point.json").write_bytes(orjson.dumps({"payload": payload(held), "vector": vectors(held)}))
    (folder / "freshet.toml").write_text(toml())
    with tempfile.TemporaryDirectory() as name:
        write_models(Path(name))
        shutil.copytree(Path(name) / "models", folder / "models", ignore=shutil.ignore_patterns(".*"))
        expected = ranking(Ranker.load(replace(Settings(), home=Path(name))))
    (folder / "expected.json").write_bytes(orjson.dumps(expected, option=orjson.OPT_INDENT_2))


def ranking(ranker: Ranker) -> dict[str, list[float]]:
    """Return log-probabilities of all items after `ITEMS`, with and without the knowledge of `point`."""
    from models.serving.requests import RankBatch, UserKnowledge

    held = point()
    result = ranker.model.rank(RankBatch(
        histories=[[ranker.row(item) for item in ITEMS]], seen=[[]], judged=[[]], top=5, current_evidence=True,
        knowledge=[UserKnowledge(held.vectors, np.array(held.items), np.array(held.weights, np.float32), 0)]))
    return {name: [round(float(value), 4) for value in getattr(result, name)[0] if value > -1e9]
            for name in ("ref_logp", "fused_logp")}


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else FILES
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    write(target)
    print(f"wrote {sum(path.is_file() for path in target.rglob('*'))} files into {target}")
