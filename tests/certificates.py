"""Certificates for tests: an authority, a server's, a client's, and those of another authority that nobody trusts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import trustme
from cryptography.hazmat.primitives import serialization as pem

KEY_PASSWORD = "opens-the-key"  # noqa: S105


@dataclass(frozen=True)
class Certificates:
    """PEM files. The server's is for 127.0.0.1 alone, so `localhost` is a wrong name."""

    ca: Path
    other_ca: Path
    server: Path  # chain and key in one file, as Apache Kafka reads it
    client: Path
    key: Path
    encrypted_key: Path
    stranger: Path  # client certificate and key in one file, from the other authority


def make(folder: Path) -> Certificates:
    folder.mkdir(parents=True, exist_ok=True)
    authority, other = trustme.CA(), trustme.CA()
    server, client = authority.issue_cert("127.0.0.1"), authority.issue_cert("freshet@example.com")
    stranger = other.issue_cert("stranger@example.com")
    files = {
        "ca": authority.cert_pem.bytes(), "other_ca": other.cert_pem.bytes(),
        "server": _key(server) + _chain(server), "client": _chain(client), "key": _key(client),
        "encrypted_key": _key(client, KEY_PASSWORD), "stranger": _key(stranger) + _chain(stranger)}
    for name, content in files.items():
        (folder / f"{name}.pem").write_bytes(content)
    return Certificates(**{name: folder / f"{name}.pem" for name in files})


def _chain(leaf: trustme.LeafCert) -> bytes:
    return b"".join(part.bytes() for part in leaf.cert_chain_pems)


def _key(leaf: trustme.LeafCert, password: str = "") -> bytes:
    key = pem.load_pem_private_key(leaf.private_key_pem.bytes(), None)
    how = pem.BestAvailableEncryption(password.encode()) if password else pem.NoEncryption()
    return key.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, how)  # Kafka reads PKCS #8 only
