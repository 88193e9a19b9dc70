import base64

import pytest

from schemas.codec import dead_letter, decode, encode
from schemas.errors import PoisonError
from schemas.messages import DeadLetter, KnowledgeRequest, Margin
from schemas.topics import TOPICS

REQUEST = KnowledgeRequest(
    user_id="u", version=3, reason="drift", history=["a", "b"], count=9, event_id="e", event_time=5.0,
    caused_at=6.0, requested_at=7.0,
)


def test_encoding_and_decoding_keep_a_message_and_unknown_fields():
    newer = encode(REQUEST)[:-1] + b',"new_field":[1,2]}'
    back = decode(KnowledgeRequest, newer)
    assert back.version == 3
    assert back.model_extra == {"new_field": [1, 2]}
    assert decode(KnowledgeRequest, encode(back)) == back


@pytest.mark.parametrize("value", [None, b"", b"nope", b"{}", encode(REQUEST).replace(b'"drift"', b'"boredom"')])
def test_an_invalid_message_is_poison(value):
    with pytest.raises(PoisonError):
        decode(KnowledgeRequest, value)


def test_a_margin_must_be_finite():
    with pytest.raises(PoisonError, match="value"):
        decode(Margin, b'{"event_id":"e","item_id":"i","count":1,"value":1e999,"knowledge_version":1}')


def test_a_dead_letter_keeps_the_original_bytes_exactly():
    poison = bytes(range(256))
    headers = [("ce_id", b"7"), ("ce_id", poison), ("none", None)]
    letter = dead_letter("t", 2, 41, "bad", value=poison, key=None, role="streams", failed_at=1.0, headers=headers)
    back = decode(DeadLetter, encode(letter))
    assert (back.topic, back.partition, back.offset, back.reason, back.key) == ("t", 2, 41, "bad", None)
    assert base64.b64decode(back.value) == poison
    assert [(name, data if data is None else base64.b64decode(data)) for name, data in back.headers] == headers


@pytest.mark.parametrize("size", [0, 640_000, 640_001, 3_000_000])
def test_a_dead_letter_fits_into_a_batch_and_says_what_was_cut(size):
    value, key = b"v" * size, b"k" * (size // 60)
    headers = [("\x01\udc80", b"h")] * (size // 100) + [("x" * size, b"y" * size)] * (size > 0)
    letter = dead_letter("t" * 249, 2, 41, "\x01\udc80" * size, value=value, key=key, role="streams", failed_at=1.0,
                         headers=headers)
    assert len(encode(letter)) < 900_000
    kept, kept_key = base64.b64decode(letter.value), base64.b64decode(letter.key)
    assert (kept, kept_key) == (value[:640_000], key[:10_000])
    assert (f"first 640000 of {size} bytes kept" in letter.reason) == (kept != value)
    assert ("of the key kept" in letter.reason) == (kept_key != key)
    assert (f"of {len(headers)} headers kept" in letter.reason) == (len(letter.headers) != len(headers))


def test_topics_that_update_user_states_are_co_partitioned():
    # The process that owns a user's state must receive all events, judgements and updates of that user.
    for name in ("behaviour-events", "judgements", "knowledge-updates"):
        assert TOPICS[name].partitions is None
        assert TOPICS[name].key == "user_id"
