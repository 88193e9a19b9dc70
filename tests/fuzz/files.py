"""Decoders of files: recorded events, data sets, settings, model folders, what a stack tells of itself."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Callable
from pathlib import Path

import cramjam
import orjson
import pyarrow
from pyarrow import parquet
from pydantic import BaseModel

from models.data.account import Account
from models.data.loading import load_dataset
from schemas.artifacts import Card, Registry, write_card
from schemas.calibration import Recalibration
from schemas.deployments import Deployments
from schemas.settings import EventSettings
from schemas.settings import load as load_settings
from tests.fuzz.campaign import Decoder
from tests.streams.cases import CALIBRATION
from workers.data.produce import read_file
from workers.home.stack_info import Running, find
from workers.home.store_key import kept_key

CSV = (b"user_id,item_id,timestamp,event_type\nann,i1,1700000000,view\nbob,i2,1700000001.5,\n"
       b"\"c,d\",i3,2020-01-01T00:00:00Z,buy\n\n\xc3\xbc,i1,17,x\n")
LINES = (b'{"user_id": "ann", "item_id": "i1", "event_time": 1700000000}\n'
         b'{"user_id": "bob", "item_id": "i2", "timestamp": "2020-01-01", "event_type": "buy", "price": 3}\n')
ARRAY = b"[" + LINES.strip().replace(b"\n", b",") + b"]"
ITEMS = (b'{"item_id": "i1", "title": "A <b>red</b> hat", "attributes": {"brand": "x", "tags": ["a", "b"]}}\n'
         b'{"item_id": "i2", "title": "Shoes &amp; more", "attributes": ["y", 3]}\n{"item_id": "i3"}\n')
TOML = (b'home = "there"\n[kafka]\nbootstrap = "h:1"\npartitions = 4\n[qdrant]\nurl = "http://h:1"\ntimeout_s = 2.5\n'
        b'api_key = "k"\n[refresh]\nalpha = 0.05\nmin_history = 3\npolicy = "drift"\n[ranking]\ntop = 5\n')


def _recorded(folder: Path, name: str) -> Callable[[bytes], None]:
    """Read recorded events as `freshet produce` does."""
    path = folder / name

    def run(data: bytes) -> None:
        path.write_bytes(data)
        account = Account(name)
        for _ in read_file(str(path), account, EventSettings()):
            pass
        account.lines()

    return run


def _parquet(folder: Path) -> bytes:
    path = folder / "sound.parquet"
    parquet.write_table(pyarrow.table({
        "user_id": ["ann", "bob"], "item_id": ["i1", "i2"], "timestamp": [1.7e9, 1.6e9]}), path)
    return path.read_bytes()


def _dataset(folder: Path, name: str) -> Callable[[bytes], None]:
    folder.mkdir()
    (folder / "events.csv").write_bytes(CSV)
    (folder / "items.jsonl").write_bytes(ITEMS)

    def run(data: bytes) -> None:
        (folder / name).write_bytes(data)
        load_dataset(folder, now=1.8e9)

    return run


def _settings(folder: Path) -> Callable[[bytes], None]:
    path = folder / "freshet.toml"

    def run(data: bytes) -> None:
        path.write_bytes(data)
        load_settings({}, path)

    return run


def _secret(folder: Path) -> Callable[[bytes], None]:
    path = folder / "secret"

    def run(data: bytes) -> None:
        path.write_bytes(data)
        load_settings({"FRESHET_QDRANT_API_KEY_FILE": str(path)}, folder / "none.toml")

    (folder / "none.toml").write_bytes(b"")
    return run


def _variables(data: bytes) -> None:
    """Read settings from the environment: lines of NAME=VALUE."""
    pairs = [line.partition("=") for line in data.decode("utf-8", "surrogateescape").splitlines()]
    load_settings({name: value for name, _, value in pairs if name != "FRESHET_CONFIG"})


def _model(home: Path, name: str) -> tuple[Callable[[bytes], None], bytes]:
    """Return the decoder of one file of a model folder, and the sound file."""
    registry = Registry(home)
    with registry.publish("m1") as scratch:
        (scratch / "calibration.json").write_bytes(orjson.dumps(CALIBRATION.model_dump()))
        (scratch / "items.json").write_bytes(orjson.dumps(["i1", "i2"]))
        write_card(scratch, Card(
            model_version="m1", created_at=1.0, data_hash="h", settings={"fit": {"system": "freshet", "codes": 3}},
            split_time=1.0, files={}))
    registry.select("m1")
    folder = registry.folder / "m1"
    sound = (folder / name).read_bytes()
    card = Card.model_validate_json((folder / "card.json").read_bytes())

    def run(data: bytes) -> None:
        (folder / name).write_bytes(data)
        if name != "card.json":  # a file that another release wrote: its hash is that of the card
            write_card(folder, card)
        artifact = registry.open("m1")
        artifact.fitted_calibration()
        artifact.items()
        str(artifact.card.system)
        registry.versions()

    return run, sound


def _recalibration(home: Path) -> tuple[Callable[[bytes], None], bytes]:
    _model(home, "card.json")
    artifact = Registry(home).open("m1")
    sound = Recalibration(
        model_version="m1", calibration_hash=artifact.card.files["calibration.json"], data_hash="h", calibrated_at=1.0,
        drift_threshold=4.0, drift_false_alarm_every=100.0)

    def run(data: bytes) -> None:
        artifact.recalibration.write_bytes(data)
        artifact.calibration()

    return run, orjson.dumps(sound.model_dump())


def _pointer(home: Path) -> Callable[[bytes], None]:
    _model(home, "card.json")
    registry = Registry(home)

    def run(data: bytes) -> None:
        (registry.folder / "CURRENT").write_bytes(data)
        registry.open()

    return run


def _deployed(home: Path) -> tuple[Callable[[bytes], None], bytes]:
    _model(home, "card.json")
    deployments = Deployments(home)
    deployments.select("m1", 1.0)
    log = deployments.registry.folder / "deployed.jsonl"

    def run(data: bytes) -> None:
        log.write_bytes(data)
        deployments.log()
        deployments.in_use()

    return run, log.read_bytes().strip()


def _home_file(home: Path, name: str, read: Callable[[Path], object]) -> Callable[[bytes], None]:
    (home / "run").mkdir(parents=True)

    def run(data: bytes) -> None:
        (home / "run" / name).write_bytes(data)
        read(home)

    return run


def decoders(folder: Path) -> list[Decoder]:
    """Return the decoders of files, which are written in `folder`."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    card, sound_card = _model(folder / "card", "card.json")
    calibration, sound_calibration = _model(folder / "calibration", "calibration.json")
    items, sound_items = _model(folder / "items", "items.json")
    again, sound_again = _recalibration(folder / "again")
    log, sound_log = _deployed(folder / "log")
    running: BaseModel = Running(
        pid=1, started_at=1.0, bootstrap="h:1", qdrant_url="http://h:2", roles=["streams"], command="up")
    return [
        Decoder("events of a CSV file", _recorded(folder, "a.csv"), [CSV], "bytes", 0.4, 2_000),
        Decoder("events of a JSON file", _recorded(folder, "a.jsonl"), [LINES], "lines", 0.4, 2_000),
        Decoder("events of a JSON array", _recorded(folder, "a.json"), [ARRAY], "json", 0.2, 2_000),
        Decoder("events of a gzip file", _recorded(folder, "a.csv.gz"), [gzip.compress(CSV)], "bytes", 0.2, 2_000),
        Decoder("events of a zstd file", _recorded(folder, "a.csv.zst"), [bytes(cramjam.zstd.compress(CSV))], "bytes",
                0.2, 2_000),
        Decoder("events of a Parquet file", _recorded(folder, "a.parquet"), [_parquet(folder)], "bytes", 0.2, 4_000),
        Decoder("data set: events.csv", _dataset(folder / "events", "events.csv"), [CSV], "bytes", 0.2, 2_000),
        Decoder("data set: items.jsonl", _dataset(folder / "catalogue", "items.jsonl"), [ITEMS], "lines", 0.2, 2_000),
        Decoder("settings: TOML", _settings(folder), [TOML, b""], "bytes", 0.5),
        Decoder("settings: variables", _variables, [
            b"FRESHET_KAFKA_BOOTSTRAP=h:1\nFRESHET_RANKING_TOP=5\nFRESHET_REFRESH_ALPHA=0.1\nPATH=x"], "bytes", 0.5),
        Decoder("settings: a secret's file", _secret(folder), [b"s3cret\n"], "bytes", 0.2),
        Decoder("model: card.json", card, [sound_card], "json", 0.2),
        Decoder("model: calibration.json", calibration, [sound_calibration], "json", 0.2),
        Decoder("model: items.json", items, [sound_items], "json", 0.2),
        Decoder("model: recalibration", again, [sound_again], "json", 0.2),
        Decoder("model: CURRENT", _pointer(folder / "pointer"), [b"m1", b"m1\n"], "bytes", 0.2),
        Decoder("model: deployed.jsonl", log, [sound_log], "lines", 0.2),
        Decoder("run/up.json", _home_file(folder / "up", "up.json", find), [orjson.dumps(running.model_dump())],
                "json", 0.2),
        Decoder("run/store.key", _home_file(folder / "key", "store.key", lambda home: kept_key(home, "http://h:1")),
                [b"http://h:1\nkey\n"], "bytes", 0.2),
    ]


