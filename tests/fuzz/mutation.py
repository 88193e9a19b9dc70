"""Mutations of sound inputs: of their bytes, and of their structure where they have one.

atheris guides such mutations by the coverage of Python code; the parsers here (orjson, pydantic, msgspec, Qdrant's
engine) are Rust and C, which it does not see, and it runs 20 times fewer inputs per second.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

LARGEST = 64_000  # bytes of an input


def nested(depth: int, inner: Any = None) -> Any:
    """Return a list in a list, `depth` times."""
    for _ in range(depth):
        inner = [inner]
    return inner


# Replaced by a number of 5,000 digits: Python refuses to print one.
HUGE = "@HUGE@"
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 255, 2**31 - 1, 2**31, 2**53, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, 2**64,
    -(2**63), -(2**63) - 1, 10**30, 10**400, HUGE, 0.1, -0.0, 0.5, 1.5, 1e11, 1e15, 1e300, -1e308, 5e-324, math.nan,
    math.inf, -math.inf, "", " ", "0", "1", "-1", "NaN", "inf", "1e999", "true", "null", "a", "u", "i1", "a" * 256,
    "a" * 257, "a" * 5_000, "𝕏" * 256, "\x00", "\ud800", "\udfff\ud800", "\u202e", "\ufeff", "é", "1700000000",
    "1700000000000", "2020-01-01T00:00:00Z", "2020-02-30", "9999-12-31T23:59:59+00:00", "9999-12-31T23:59:59-14:00",
    "0001-01-01T00:00:00", "0001-01-01T00:00:00+14:00", "-0001-01-01", "2020-W01-1", "../../etc/passwd",
    "'; DROP TABLE", "{{7*7}}", "<|im_end|>", "drift", "stale", "event", "knowledge", "m1", "m1+a1", [], {}, [[]], [{}],
    {"": None}, {"a": {"a": {"a": 1}}}, [None], ["a"], [1, 2, 3], [0.5] * 3, [math.nan], [[0.1] * 8] * 3,
    list(range(300)), ["x"] * 300, {f"k{n}": n for n in range(200)}, nested(30), nested(200), nested(600),
    nested(30, {"a": 1}))
TOKENS = (
    b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b"\n", b"\r", b"\t", b"\x00", b"\xff", b"\xfe\xff",
    b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\\ud800", b"\\u0000", b"null", b"NaN", b"Infinity", b"-", b"1e999", b"9" * 400,
    b"0.", b"\xc1", b"\xdd", b"\x93\x01\x02", b"'", b"=", b"#", b"[[", b"]]", b'"""', b"''", b";", b"\x1f\x8b\x08",
    b"PK\x03\x04", b"inf", b"\xe2\x80\xae")


class Mutator:
    """Makes inputs from seeds.

    Args:
        seeds: sound inputs of one decoder.
        form: "json", "lines" (a JSON object per line), "msgpack" or "bytes".
        random_: source of all choices: the same one makes the same inputs.
        largest: bytes of an input.
    """

    def __init__(self, seeds: Sequence[bytes], form: str, random_: random.Random, largest: int = LARGEST) -> None:
        self._seeds = list(seeds)
        self._largest = largest
        self._random = random_
        self._form = form
        self._names = sorted({name for seed in seeds for name in _names(_parsed(seed, form))}) or ["a"]
        self._bytes: list[Callable[[bytearray], None]] = [
            self._flip, self._flip, self._overwrite, self._token, self._token, self._delete, self._copy, self._cut,
            self._splice, self._digits]

    def one(self) -> bytes:
        """Return the next input."""
        choose = self._random
        seed = choose.choice(self._seeds)
        draw = choose.random()
        if self._form != "bytes" and draw < 0.55:
            seed = self._structure(seed)
            if draw < 0.45:
                return seed[: self._largest]
        if draw > 0.995:
            return choose.randbytes(choose.randrange(200))
        data = bytearray(seed)
        for _ in range(choose.choice((1, 1, 1, 2, 2, 3, 5, 8))):
            choose.choice(self._bytes)(data)
        return bytes(data[: self._largest])

    def _at(self, data: bytearray) -> int:
        return self._random.randrange(len(data) + 1)

    def _flip(self, data: bytearray) -> None:
        if data:
            data[self._random.randrange(len(data))] ^= 1 << self._random.randrange(8)

    def _overwrite(self, data: bytearray) -> None:
        if data:
            byte = self._random.choice((0, 1, 0x7F, 0x80, 0xFF, 0x22, 0x5C, 0x30, 0x39))
            data[self._random.randrange(len(data))] = byte

    def _token(self, data: bytearray) -> None:
        at = self._at(data)
        data[at:at] = self._random.choice(TOKENS) * self._random.choice((1, 1, 1, 2, 40))

    def _delete(self, data: bytearray) -> None:
        at = self._at(data)
        del data[at : at + self._random.choice((1, 2, 4, 16, 64))]

    def _copy(self, data: bytearray) -> None:
        begin, at = self._at(data), self._at(data)
        data[at:at] = bytes(data[begin : begin + 40]) * self._random.choice((1, 1, 2, 5, 50, 300))

    def _cut(self, data: bytearray) -> None:
        del data[self._at(data) :]

    def _splice(self, data: bytearray) -> None:
        other = self._random.choice(self._seeds)
        data[self._at(data) :] = other[self._random.randrange(len(other) + 1) :]

    def _digits(self, data: bytearray) -> None:
        at = self._at(data)
        data[at:at] = self._random.choice((b"0", b"9" * 20, b"-", b".5", b"e9", b"e-400", b"_"))

    def _structure(self, seed: bytes) -> bytes:
        """Replace, remove, rename, repeat or move parts of the parsed seed."""
        if self._form == "lines":
            lines = seed.splitlines()
            at = self._random.randrange(len(lines))
            lines[at] = self._changed(lines[at], "json")
            return b"\n".join(lines)
        return self._changed(seed, self._form)

    def _changed(self, seed: bytes, form: str) -> bytes:
        tree = _parsed(seed, form)
        for _ in range(self._random.choice((1, 1, 2, 3))):
            tree = self._change(tree)
        return _dumped(tree, form, self._random)

    def _value(self) -> Any:
        value = self._random.choice(VALUES)
        # A new one, since later changes go into it; `copy.deepcopy` gives up at a depth of 300.
        return json.loads(json.dumps(value)) if isinstance(value, list | dict) else value

    def _change(self, tree: Any) -> Any:
        choose = self._random
        if choose.random() < 0.02:
            return self._value()
        node = tree
        while True:
            if isinstance(node, dict) and node:
                key: Any = choose.choice(list(node))
            elif isinstance(node, list) and node:
                key = choose.randrange(len(node))
            else:
                return tree
            child = node[key]
            if isinstance(child, dict | list) and child and choose.random() < 0.7:
                node = child
                continue
            break
        draw = choose.random()
        if draw < 0.6:
            node[key] = self._value()
        elif draw < 0.7:
            del node[key]
        elif isinstance(node, dict):
            node[choose.choice(self._names)] = child
        else:
            node[key:key] = [child] * choose.choice((1, 2, 20))
        return tree


def _parsed(seed: bytes, form: str) -> Any:
    if form == "json":
        return json.loads(seed)
    if form == "lines":
        return [json.loads(line) for line in seed.splitlines() if line.strip()]
    return msgspec.msgpack.decode(seed) if form == "msgpack" else None


def _dumped(tree: Any, form: str, choose: random.Random) -> bytes:
    if form == "msgpack":
        try:
            return msgspec.msgpack.encode(tree)
        except (OverflowError, UnicodeEncodeError, RecursionError):
            return b""
    text = json.dumps(tree, ensure_ascii=choose.random() < 0.7).replace(f'"{HUGE}"', "9" * 5_000)
    return text.encode("utf-8", "surrogatepass")


def _names(tree: Any) -> set[str]:
    if isinstance(tree, dict):
        return {str(key) for key in tree} | {name for value in tree.values() for name in _names(value)}
    if isinstance(tree, list):
        return {name for value in tree for name in _names(value)}
    return set()
