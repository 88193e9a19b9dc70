"""The compared systems, and the environment of the peers."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PEERS = ROOT / "benchmarks" / "peers.txt"
VENV = ROOT / ".bench-venv"


@dataclass(frozen=True, slots=True)
class IngestSystem:
    """One of the compared systems.

    Args:
        module: module for `python -m`.
        package: required package; a peer without it is skipped.
        own: runs in Freshet's environment instead of the peers'.
        commits: commits offsets to its consumer group; otherwise the meter's count marks the end.
        prefix: a slow system, measured only on the workload's `prefix` events.
    """

    name: str
    title: str
    module: str
    state: str
    package: str
    own: bool = False
    commits: bool = True
    prefix: bool = False


SYSTEMS = (
    IngestSystem(
        "freshet", "Freshet, profile stage", "benchmarks.ingest.freshet_profile", "RocksDB, changelog", "freshet",
        own=True),
    IngestSystem(
        "faust", "Faust, idiomatic", "benchmarks.ingest.peers.faust_agent", "RocksDB, changelog", "faust-streaming",
        prefix=True),
    IngestSystem("quix", "Quix Streams", "benchmarks.ingest.peers.quix", "RocksDB, changelog", "quixstreams"),
    IngestSystem(
        "bytewax", "Bytewax", "benchmarks.ingest.peers.bytewax_flow", "memory, no changelog", "bytewax",
        commits=False),
    IngestSystem(
        "bare", "bare consumer (ceiling)", "benchmarks.ingest.peers.bare", "memory, no changelog",
        "confluent-kafka"),
)


def python_of(system: IngestSystem) -> Path:
    """Return the interpreter a system runs in."""
    return Path(sys.executable) if system.own else VENV / "bin" / "python"


def set_up_peers() -> None:
    """Install the peers' pinned versions into their own environment if they are missing."""
    digest = hashlib.sha256(PEERS.read_bytes()).hexdigest()
    stamp = VENV / "installed"
    if stamp.is_file() and stamp.read_text() == digest:
        return
    print(f"installing the peers into {VENV.name} …", flush=True)
    if not (VENV / "bin" / "python").exists():
        subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True)
    subprocess.run(
        [str(VENV / "bin" / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check", "-r", str(PEERS)],
        check=True)
    stamp.write_text(digest)


def versions() -> dict[str, str]:
    """Return the installed versions of the peers' packages."""
    names = [line.partition("==")[0] for line in PEERS.read_text().splitlines() if "==" in line and line[0] != "#"]
    code = (f"import importlib.metadata as m, json; there = {{d.name for d in m.distributions()}}; "
            f"print(json.dumps({{n: m.version(n) for n in {names!r} if n in there}}))")
    result = subprocess.run([str(VENV / "bin" / "python"), "-c", code], check=True, capture_output=True, text=True)
    return dict(json.loads(result.stdout))
