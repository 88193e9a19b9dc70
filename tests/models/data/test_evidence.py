from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from models.data.evidence import NO_EVIDENCE, evidence
from models.data.loading import load_dataset
from schemas.errors import DataError
from schemas.settings.meanings import Meanings
from streams.decisions.planner import Planner
from streams.profile.fold import Event
from tests.streams import cases

ROWS = """user_id,item_id,event_time,event_type
a,i1,1700000000,view
a,i2,1700000001,purchase
b,i2,1700000002,view
a,i2,1700000003,return
b,i1,1700000004,impression
a,i3,1700000005,lend
a,i2,1700000006,view
b,i3,1700000007,skip
b,i3,1700000007,view
"""


def test_what_is_fitted_is_what_streams_keeps_in_the_history(tmp_path: Path) -> None:
    path = tmp_path / "events.csv"
    path.write_text(ROWS)
    whole = load_dataset(path)
    some = evidence(whole)
    assert (len(whole.events), len(some.events), some.skipped[NO_EVIDENCE]) == (9, 4, 5)
    assert some.hash == whole.hash
    states: dict = {}
    of = whole.events
    Planner(cases.item_vectors(), cases.CALIBRATION, cases.settings()).events(states, [
        Event(whole.users[of.user[row]], whole.items[of.item[row]], of.time[row], whole.types[of.type[row]], f"{row}",
              row, 1.0) for row in range(len(of))], 1e9)
    for number, user in enumerate(some.users):
        rows = np.flatnonzero(some.events.user == number)
        assert [some.items[item] for item in some.events.item[rows]] == states[user].items
    assert len(evidence(whole, Meanings({"lend": "neutral"})).events) == 3


def test_data_of_plain_events_stays_the_same_object(tmp_path: Path) -> None:
    path = tmp_path / "events.csv"
    path.write_text("user_id,item_id,event_time\na,i,1700000000\nb,i,1700000001\n")
    dataset = load_dataset(path)
    assert evidence(dataset) is dataset
    with pytest.raises(DataError, match="FRESHET_EVENTS_MEANINGS says what events mean, such as interaction=interest"):
        evidence(replace(dataset), Meanings({"interaction": "neutral"}))
