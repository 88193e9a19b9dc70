"""Every way to connect to a broker, against Apache Kafka: who may, gets in; who may not, is told why.

One broker has a door per way. Users of SCRAM are made by its administration, users of PLAIN are in its properties.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import orjson
import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import (
    AdminClient,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialDeletion,
    UserScramCredentialUpsertion,
)

from schemas.errors import FreshetError
from schemas.settings import KafkaSettings, Settings, load, to_environ
from schemas.topics import RANKING_REQUESTS
from streams.service.connection import check_brokers
from tests.certificates import KEY_PASSWORD, Certificates, make
from tests.system.stack import command
from tests.workers.brokers import KafkaNode, kafka_home, needs_kafka
from tests.workers.fitted import ITEMS, publish, settings_in
from workers.cli.doctor import examine
from workers.kafka.configuration import check_reachable, producer
from workers.kafka.reader import read_all
from workers.kafka.topics import create_topics

pytestmark = [pytest.mark.slow, pytest.mark.kafka, needs_kafka]
USER, PASSWORD, WRONG = "freshet", "hunter2-the-password", "hunter3-not-the-password"
SECRETS = (PASSWORD, WRONG, KEY_PASSWORD)
DOORS = ("SASL_PLAINTEXT", "SASL_SSL", "SSL")
_MODULE = "org.apache.kafka.common.security"
_PLAIN = f'{_MODULE}.plain.PlainLoginModule required user_{USER}="{PASSWORD}";'
_SCRAM = f"{_MODULE}.scram.ScramLoginModule required;"


@dataclass(frozen=True)
class Doors:
    """A broker, and the addresses of its listeners."""

    inside: str
    address: dict[str, str]
    files: Certificates
    node: KafkaNode | None = None

    def settings(self, way: str) -> KafkaSettings:
        """Return the settings of a way: PROTOCOL or PROTOCOL/MECHANISM."""
        protocol, _, mechanism = way.partition("/")
        out = KafkaSettings(
            bootstrap=self.address[protocol], partitions=2, session_timeout_s=6.0, security_protocol=protocol)
        if mechanism:
            out = replace(out, sasl_mechanism=mechanism, sasl_username=USER, sasl_password=PASSWORD)
        if protocol in {"SSL", "SASL_SSL"}:
            out = replace(out, ssl_cafile=str(self.files.ca))
        if protocol == "SSL":
            out = replace(out, ssl_certfile=str(self.files.client), ssl_keyfile=str(self.files.encrypted_key),
                          ssl_key_password=KEY_PASSWORD)
        return out


def alter(bootstrap: str, change: UserScramCredentialUpsertion | UserScramCredentialDeletion) -> None:
    admin = AdminClient({"bootstrap.servers": bootstrap})  # a name: without one it ends before its answers come
    for done in admin.alter_user_scram_credentials([change]).values():
        done.result()


@pytest.fixture(scope="module")
def doors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doors]:
    folder = tmp_path_factory.mktemp("secured")
    files = make(folder / "certificates")
    ports: dict[str, int] = {}

    def properties(port: int, free: Callable[[], int]) -> list[str]:
        while len(set(ports.values()) - {port, port + 1}) < len(DOORS):
            ports.update({door: free() for door in DOORS})
        outside = [f"{door}://127.0.0.1:{ports[door]}" for door in DOORS]
        inside = f"PLAINTEXT://127.0.0.1:{port}"
        out = [
            f"listeners={','.join([inside, f'CONTROLLER://127.0.0.1:{port + 1}', *outside])}",
            f"advertised.listeners={','.join([inside, *outside])}",
            "ssl.keystore.type=PEM", f"ssl.keystore.location={files.server}",
            "ssl.truststore.type=PEM", f"ssl.truststore.location={files.ca}",
            "listener.name.ssl.ssl.client.auth=required"]
        for door in ("sasl_plaintext", "sasl_ssl"):
            out += [f"listener.name.{door}.sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
                    f"listener.name.{door}.plain.sasl.jaas.config={_PLAIN}",
                    *(f"listener.name.{door}.scram-sha-{bits}.sasl.jaas.config={_SCRAM}" for bits in (256, 512))]
        return out

    home = kafka_home()
    assert home is not None
    node = KafkaNode(folder, home, properties)
    try:
        for mechanism in (ScramMechanism.SCRAM_SHA_256, ScramMechanism.SCRAM_SHA_512):
            alter(node.bootstrap, UserScramCredentialUpsertion(
                USER, ScramCredentialInfo(mechanism, 4096), PASSWORD.encode()))
        create_topics(KafkaSettings(bootstrap=node.bootstrap, partitions=2))
        yield Doors(node.bootstrap, {door: f"127.0.0.1:{port}" for door, port in ports.items()}, files, node)
    finally:
        node.kill()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A home with a fitted model."""
    settings = settings_in(tmp_path_factory.mktemp("home"))
    publish(settings, "v1")
    return settings


WAYS = ("SASL_PLAINTEXT/PLAIN", "SASL_PLAINTEXT/SCRAM-SHA-256", "SASL_SSL/SCRAM-SHA-512", "SASL_SSL/PLAIN", "SSL")


@pytest.mark.parametrize("way", WAYS)
def test_both_clients_get_in_and_doctor_says_how_without_the_secret(doors: Doors, home: Settings, way: str) -> None:
    kafka = doors.settings(way)
    create_topics(kafka)
    asyncio.run(check_brokers(kafka))
    found = {check.name: check.text for check in examine(replace(home, kafka=kafka))}
    assert "topics; lag" in found["broker"]
    assert ("TLS, trusts " in found["connection"]) is (not way.startswith("SASL_PLAINTEXT"))
    assert way.partition("/")[2] in found["connection"]
    assert not any(secret in text for secret in SECRETS for text in found.values())


@pytest.mark.parametrize("way", ["SASL_PLAINTEXT/PLAIN", "SASL_SSL/SCRAM-SHA-512", "SSL"])
def test_the_streams_role_works_behind_every_door(doors: Doors, home: Settings, tmp_path: Path, way: str) -> None:
    """aiokafka and confluent-kafka: an event is answered by a ranking request; no secret is anywhere to be seen."""
    kafka = doors.settings(way)
    settings = replace(home, kafka=kafka, home=tmp_path)
    (tmp_path / "models").symlink_to(home.home / "models")
    log = tmp_path / "streams.log"
    user = f"ann-{way}"
    with log.open("wb") as out:
        role = subprocess.Popen(
            command("role", "streams"), env=environ_with_files(settings, tmp_path), stdout=out,
            stderr=subprocess.STDOUT)
    try:
        sender = Producer(producer(kafka))
        sender.produce("behaviour-events", orjson.dumps(
            {"user_id": user, "item_id": ITEMS[0], "event_type": "view", "event_time": time.time()}), key=user)
        assert sender.flush(20) == 0
        deadline = time.monotonic() + 90
        while not any(message.key() == user.encode() for message in read_all(kafka, [RANKING_REQUESTS.name])):
            assert role.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)
        assert not any(secret in Path(f"/proc/{role.pid}/cmdline").read_text() for secret in SECRETS)
    finally:
        role.terminate()
        role.wait(20)
    for path in (log, *(tmp_path / "run").glob("*")):
        assert not any(secret in path.read_text() for secret in SECRETS), path


def environ_with_files(settings: Settings, folder: Path) -> dict[str, str]:
    """Return the environment of a process whose secrets come from files."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith("FRESHET_")}
    environ |= to_environ(settings) | {"OMP_NUM_THREADS": "1"}
    for variable in ("FRESHET_KAFKA_SASL_PASSWORD", "FRESHET_KAFKA_SSL_KEY_PASSWORD"):
        if secret := environ.pop(variable, ""):
            path = folder / variable.lower()
            path.write_text(secret + "\n")
            environ[f"{variable}_FILE"] = str(path)
    return environ


def refusals(doors: Doors) -> dict[str, tuple[KafkaSettings, str]]:
    """Return, per mistake, settings that make it and what must be said."""
    scram, tls = doors.settings("SASL_SSL/SCRAM-SHA-512"), doors.settings("SSL")
    plain = doors.settings("SASL_PLAINTEXT/PLAIN")
    inside = {"bootstrap": doors.inside}
    return {
        "wrong password": (replace(scram, sasl_password=WRONG), "refuses user 'freshet' by SCRAM-SHA-512"),
        "wrong password, PLAIN": (replace(plain, sasl_password=WRONG), "refuses user 'freshet' by PLAIN"),
        "unknown user": (replace(scram, sasl_username="eve"), "refuses user 'eve'"),
        "untrusted broker": (replace(scram, ssl_cafile=str(doors.files.other_ca)), "FRESHET_KAFKA_SSL_CAFILE"),
        "the system's authorities": (replace(scram, ssl_cafile=""), "FRESHET_KAFKA_SSL_CAFILE"),
        "wrong host name": (
            replace(scram, bootstrap=scram.bootstrap.replace("127.0.0.1", "localhost")), "is not trusted"),
        "no client certificate": (
            replace(tls, ssl_certfile="", ssl_keyfile="", ssl_key_password=""), "FRESHET_KAFKA_SSL_CERTFILE"),
        "untrusted client": (
            replace(tls, ssl_certfile=str(doors.files.stranger), ssl_keyfile="", ssl_key_password=""),
            "refuses this client's TLS certificate"),
        "a door without users": (replace(plain, **inside), "refuses user 'freshet'"),
        "wrong key password": (replace(tls, ssl_key_password=WRONG), "FRESHET_KAFKA_SSL_KEY_PASSWORD_FILE"),
    }


MISTAKES = tuple(refusals(Doors("", dict.fromkeys(DOORS, "127.0.0.1:1"), Certificates(*[Path()] * 7))))


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_refused_client_is_told_why_in_one_line_by_both_clients(doors: Doors, mistake: str) -> None:
    kafka, says = refusals(doors)[mistake]
    for connect in (lambda: check_reachable(kafka, 3.0), lambda: asyncio.run(check_brokers(kafka))):
        with pytest.raises(FreshetError) as caught:
            connect()
        assert says in str(caught.value)
        assert "\n" not in str(caught.value)
        assert not any(secret in str(caught.value) for secret in SECRETS)


@pytest.mark.parametrize("protocol", ["PLAINTEXT", "SSL"])
def test_a_client_that_speaks_another_protocol_than_the_door_is_told_to_check_it(doors: Doors, protocol: str) -> None:
    address = doors.address["SSL"] if protocol == "PLAINTEXT" else doors.inside
    with pytest.raises(FreshetError, match=f"FRESHET_KAFKA_SECURITY_PROTOCOL, which is {protocol}"):
        check_reachable(KafkaSettings(bootstrap=address, security_protocol=protocol), 2.0)


@pytest.mark.parametrize("words", [("up", "--roles", "streams"), ("role", "streams"), ("role", "guard"), ("topics",)],
                         ids=" ".join)
def test_a_process_with_a_wrong_password_ends_with_one_line(
    doors: Doors, home: Settings, tmp_path: Path, words: tuple[str, ...],
) -> None:
    kafka, says = refusals(doors)["wrong password"]
    environ = environ_with_files(replace(home, kafka=kafka, home=tmp_path), tmp_path)
    (tmp_path / "models").symlink_to(home.home / "models")
    assert load(environ).kafka.sasl_password == WRONG
    done = subprocess.run(command(*words), env=environ, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert sum(says in line for line in done.stderr.splitlines()) == 1, done.stderr
    assert not any(secret in done.stdout + done.stderr for secret in SECRETS)


@pytest.mark.timeout(240)
def test_a_service_whose_user_is_removed_ends_with_one_line(doors: Doors, home: Settings, tmp_path: Path) -> None:
    """Kafka asks at connection time only, so a restart of the broker is when it shows. Last: it restarts the broker."""
    assert doors.node is not None
    user, mechanism = "leaver", ScramMechanism.SCRAM_SHA_256
    alter(doors.inside, UserScramCredentialUpsertion(user, ScramCredentialInfo(mechanism, 4096), PASSWORD.encode()))
    kafka = replace(doors.settings("SASL_PLAINTEXT/SCRAM-SHA-256"), sasl_username=user)
    environ = environ_with_files(replace(home, kafka=kafka, home=tmp_path), tmp_path)
    environ["FRESHET_WATCHDOG_STALL_S"] = "3"
    (tmp_path / "models").symlink_to(home.home / "models")
    log = tmp_path / "up.log"
    with log.open("wb") as out:
        service = subprocess.Popen(command("up", "--roles", "guard"), env=environ, stdout=out, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "run" / "guard.ready").exists():
            assert service.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        alter(doors.inside, UserScramCredentialDeletion(user, mechanism))
        doors.node.kill()
        doors.node.start()
        assert service.wait(100) == 1
    finally:
        service.kill()
    text = log.read_text()
    assert text.strip().splitlines()[-1].startswith(f"freshet: {kafka.bootstrap} refuses user 'leaver'"), text
    assert "Traceback" not in text
    assert PASSWORD not in text
