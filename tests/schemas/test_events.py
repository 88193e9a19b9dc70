import pytest
from pydantic import ValidationError

from schemas.events import BehaviourEvent, make_event_id


def test_three_fields_are_enough_and_the_id_is_computed_from_them() -> None:
    event = BehaviourEvent(user_id="u", item_id="i", event_time=1.5)
    assert (event.event_type, event.schema_version) == ("interaction", 1)
    assert event.event_id == make_event_id("u", "i", 1.5, "interaction")
    assert BehaviourEvent(user_id="u", item_id="j", event_time=1.5).event_id != event.event_id
    assert BehaviourEvent(user_id="u", item_id="i", event_time=1.5, event_id="mine").event_id == "mine"


def test_unknown_fields_pass_through() -> None:
    event = BehaviourEvent.model_validate({"user_id": "u", "item_id": "i", "event_time": 1.5, "price": 3})
    assert event.model_extra == {"price": 3}


@pytest.mark.parametrize("fields", [{"user_id": ""}, {"item_id": "x" * 257}, {"event_time": float("nan")},
                                    {"event_time": -1}, {"event_time": True}, {"event_type": []}])
def test_what_is_not_canonical_is_refused(fields: dict) -> None:
    with pytest.raises(ValidationError):
        BehaviourEvent.model_validate({"user_id": "u", "item_id": "i", "event_time": 1.5} | fields)
