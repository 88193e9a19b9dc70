from __future__ import annotations

import base64

from schemas.codec import dead_letter
from schemas.messages import DeadLetter
from workers.measurement.dead_letters import by_kind, headers_of, key_of, of_user, replayable, value_of


def letter(reason: str, value: bytes = b"{}", offset: int = 1, at: float = 1.0, topic: str = "behaviour-events",
           key: bytes | None = b"k") -> DeadLetter:
    return dead_letter(topic, 2, offset, reason, value=value, key=key, role="streams", failed_at=at)


def test_letters_are_grouped_by_what_their_reasons_share() -> None:
    kinds = by_kind([
        letter("event_time: 900 s ahead of the clock", offset=1, at=1.0),
        letter("event_time: 1234.5 s ahead of the clock", offset=2, at=3.0),
        letter("user_id: missing; the event has a, b; map it", at=2.0), letter("empty value", topic="judgements"),
        letter("user_id: missing; the event has c; map it", at=1.0),
        letter("event_time: 7 s ahead of the clock", offset=3, at=2.0)])
    assert [(kind.topic, kind.count, kind.newest, kind.last) for kind in kinds] == [
        ("behaviour-events", 3, (2, 2), 3.0), ("behaviour-events", 2, (2, 1), 2.0), ("judgements", 1, (2, 1), 1.0)]
    assert kinds[0].reason == "event_time: 1234.5 s ahead of the clock"


def test_a_users_letters_are_found_by_key_and_by_value() -> None:
    mine = [letter("x", b'{"user_id": "42"}'), letter("x", b'{"user_id":42,"a":1}'), letter("x", b"?", key=b"42"),
            letter("x", b'{"user_id": 42}')]
    others = [letter("x", b'{"user_id": "420"}'), letter("x", b'{"user_id":420}'), letter("x", b"42"),
              letter("x", b"", key=None)]
    assert of_user(mine + others, "42") == mine


def test_what_can_be_sent_again() -> None:
    whole, cut = letter("bad", b"abc"), letter("bad", b"x" * 700_000, offset=2)
    empty, strange = letter("empty value", b"", offset=3), letter("bad", b"abc", offset=4, topic="elsewhere")
    good, bad = replayable([whole, cut, empty, strange, whole], ["behaviour-events"])
    assert good == [whole]
    assert (value_of(whole), key_of(whole)) == (b"abc", b"k")
    assert sum(bad.values()) == 4
    assert len(bad) == 4
    many = dead_letter("behaviour-events", 2, 5, "bad", value=b"abc", key=None, role="streams", failed_at=1.0,
                       headers=[("name", b"x" * 9000)] * 3)
    refused = letter("bad (cut to what the broker takes)", b"abc", offset=6)
    assert replayable([many, refused], ["behaviour-events"])[0] == []


def test_a_letter_has_the_headers_of_its_record() -> None:
    headers = [("ce_type", b"view"), ("ce_type", b"\xff"), ("empty", None)]
    made = dead_letter("t", 0, 1, "bad", value=b"", key=None, role="streams", failed_at=1.0, headers=headers)
    assert headers_of(made) == headers


def test_a_letter_that_freshet_did_not_write_is_shown_as_it_is() -> None:
    foreign = letter("x").model_copy(update={"value": "no base64!", "key": base64.b64encode(b"k").decode()})
    assert value_of(foreign) == b"no base64!"
