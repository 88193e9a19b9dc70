"""The short form of `make fuzz`, and inputs that hypothesis builds from the fields of the messages."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from schemas.errors import FreshetError
from schemas.topics import TOPICS
from tests.fuzz import messages
from tests.fuzz.campaign import LIMIT_S, Decoder, Outcome, campaign, report, try_inputs
from tests.fuzz.decoders import decoders
from tests.fuzz.mutation import Mutator


@pytest.fixture(scope="module")
def all_decoders() -> Iterator[list[Decoder]]:
    with decoders() as made:
        yield made


def test_hostile_bytes_give_a_result_or_a_refusal(all_decoders: list[Decoder]) -> None:
    outcomes = campaign(all_decoders, 20_000, seed=1)
    text = report(outcomes)
    assert not [name for name, one in outcomes.items() if one.escaped], text
    assert not [name for name, one in outcomes.items() if one.slowest_s > LIMIT_S], text
    assert sum(one.inputs for one in outcomes.values()) >= 20_000
    assert all(one.taken for one in outcomes.values()), text  # not only refusals: the decisions behind are reached
    assert any(one.taken < one.inputs for one in outcomes.values())


def test_every_topic_has_a_decoder(all_decoders: list[Decoder]) -> None:
    assert set(TOPICS) <= {decoder.name for decoder in all_decoders}


def test_what_escapes_is_reported() -> None:
    def run(data: bytes) -> None:
        if data == b"poison":
            raise KeyError("escaped")
        raise FreshetError("refused")

    outcome = Outcome()
    try_inputs(Decoder("a", run, [b"x"]), [b"poison", b"y"], outcome)
    (where,) = outcome.escaped
    assert where.startswith("KeyError at test_fuzz.py")
    assert (outcome.inputs, outcome.taken) == (2, 0)
    assert b"poison".decode() in report({"a": outcome})


def test_a_seed_repeats_its_inputs() -> None:
    import random

    made = [[Mutator([b'{"a": [1, 2]}'], "json", random.Random(n)).one() for n in range(200)] for _ in range(2)]
    assert made[0] == made[1]
    assert len(set(made[0])) > 100


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.integers(-(2**70), 2**70),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4), max_leaves=8)


@st.composite
def almost(draw: st.DrawFn, sound: dict[str, Any]) -> bytes:
    """A sound message with some fields left out or replaced by anything."""
    fields = dict(sound)
    for name in draw(st.lists(st.sampled_from(sorted(fields)), max_size=3, unique=True)):
        if draw(st.booleans()):
            fields[name] = draw(JSON)
        else:
            del fields[name]
    import json

    return json.dumps(fields).encode()


@pytest.mark.parametrize(("run", "sound"), [
    (messages.behaviour_event, orjson.loads(messages.EVENTS[0])),
    (messages.judgement, messages.JUDGEMENT.model_dump()), (messages.knowledge_update, messages.UPDATE.model_dump()),
    (messages.knowledge_request, messages.REQUEST.model_dump()),
    (messages.ranking_request, messages.RANKING.model_dump())])
def test_messages_with_any_value_in_any_field(run: Any, sound: dict[str, Any]) -> None:
    @given(data=almost(sound))
    @hypothesis_settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
    def check(data: bytes) -> None:
        with contextlib.suppress(FreshetError):
            run(data)

    check()
