"""Runs inputs through decoders, and notes how long each takes and what escapes."""

from __future__ import annotations

import gc
import random
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from schemas.errors import FreshetError
from tests.fuzz.mutation import LARGEST, Mutator

LIMIT_S = 0.010


@dataclass(frozen=True)
class Decoder:
    """A decoder of bytes from outside.

    Args:
        run: decodes and, where the result goes on into decisions, takes it there; raises FreshetError for a refusal.
        form: see `Mutator`.
        largest: bytes of an input; small where one holds many records, since the limit of time is for a record.
        share: of all inputs, relative to the other decoders: fewer for those that write files.
    """

    name: str
    run: Callable[[bytes], object]
    seeds: Sequence[bytes]
    form: str = "json"
    share: float = 1.0
    largest: int = LARGEST


@dataclass
class Outcome:
    """What happened to the inputs of one decoder. Times are CPU seconds of the decoding thread."""

    inputs: int = 0
    taken: int = 0
    slowest_s: float = 0.0
    slowest: bytes = b""
    total_s: float = 0.0
    escaped: dict[str, tuple[bytes, str]] = field(default_factory=dict)  # where → first input, traceback


def try_inputs(decoder: Decoder, inputs: Iterable[bytes], outcome: Outcome) -> None:
    """Run inputs. The garbage collector works between them: its pauses grow with the heap, not with the input."""
    gc.freeze()  # what is there already, torch too, need not be looked at again every time
    gc.disable()
    try:
        for data in inputs:
            began = time.thread_time()
            try:
                decoder.run(data)
                outcome.taken += 1
            except FreshetError:
                pass
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # a panic of Rust code is no Exception
                last = traceback.extract_tb(error.__traceback__)[-1]
                where = f"{type(error).__name__} at {last.filename.rpartition('/')[2]}:{last.lineno}"
                outcome.escaped.setdefault(where, (data, traceback.format_exc()))
            took = time.thread_time() - began
            outcome.inputs += 1
            outcome.total_s += took
            if took > outcome.slowest_s:
                outcome.slowest_s, outcome.slowest = took, data
            if outcome.inputs % 5_000 == 0:
                gc.collect()
    finally:
        gc.unfreeze()
        gc.enable()


def campaign(decoders: Sequence[Decoder], inputs: int, seed: int) -> dict[str, Outcome]:
    """Return the outcome per decoder of at least `inputs` inputs in all."""
    whole = sum(decoder.share for decoder in decoders)
    outcomes = {}
    for decoder in decoders:
        for sound in decoder.seeds:  # also loads what is loaded once
            decoder.run(sound)
        mutator = Mutator(decoder.seeds, decoder.form, random.Random(f"{seed} {decoder.name}"), decoder.largest)
        outcome = outcomes[decoder.name] = Outcome()
        count = int(inputs * decoder.share / whole) + 1
        try_inputs(decoder, (mutator.one() for _ in range(count)), outcome)
        for _again in range(3):  # slow once may be a cache or a page that was missing; slow every time is the input
            if outcome.slowest_s <= LIMIT_S:
                break
            repeated = Outcome()
            try_inputs(decoder, [outcome.slowest], repeated)
            outcome.slowest_s = min(outcome.slowest_s, repeated.slowest_s)
    return outcomes


def report(outcomes: dict[str, Outcome]) -> str:
    """Return a table, and what escaped."""
    lines = [f"{'decoder':28}{'inputs':>12}{'taken':>10}{'mean':>10}{'slowest':>11}  escaped"]
    for name, one in outcomes.items():
        lines.append(f"{name:28}{one.inputs:>12,}{one.taken:>10,}{1e6 * one.total_s / max(1, one.inputs):>7.0f} µs"
                     f"{1e3 * one.slowest_s:>8.2f} ms  {len(one.escaped)}")
    lines.append(f"{'all':28}{sum(one.inputs for one in outcomes.values()):>12,}"
                 f"{sum(one.taken for one in outcomes.values()):>10,}{'':10}"
                 f"{1e3 * max(one.slowest_s for one in outcomes.values()):>8.2f} ms  "
                 f"{sum(len(one.escaped) for one in outcomes.values())}")
    for name, one in outcomes.items():
        for where, (data, trace) in one.escaped.items():
            lines.append(f"\n{name}: {where}\n{data[:600]!r}\n{trace[-1_500:]}")
        if one.slowest_s > LIMIT_S:
            lines.append(f"\n{name}: {1e3 * one.slowest_s:.1f} ms\n{len(one.slowest)} bytes: {one.slowest[:300]!r}")
    return "\n".join(lines)
