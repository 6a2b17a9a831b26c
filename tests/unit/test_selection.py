"""The options of ``dead-letters`` select the letters that they describe."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid5

import pytest

from tests.support.letters import letter
from worker.broker.incoming import read_message
from worker.contract.delivery import Delivery
from worker.contract.message import fingerprint
from worker.contract.plain import PlainMessages
from worker.operate.letter import Letter
from worker.operate.letter_reader import Taken
from worker.operate.selection import Selection

FLOW_ID = UUID("5d9c3a9e-7e0c-4a4b-8f0a-0c7f3d1f5a11")


def letters() -> list[Letter]:
    found = []
    for number in range(20):
        publication = letter("q.dead", number, large=0)
        message = read_message(publication.properties, publication.body)
        taken = Taken(fingerprint(message), number, None)  # type: ignore[arg-type]  # not acknowledged
        found.append(Letter.of(taken, Delivery(number, message)))
    return found


@pytest.mark.parametrize(
    ("wanted", "numbers"),
    [
        ({}, list(range(20))),
        ({"key": "order-7"}, [7]),
        ({"key": "order"}, []),
        ({"since": datetime(2026, 11, 30, 12, 0, 17, tzinfo=UTC)}, [17, 18, 19]),
        ({"flow": str(FLOW_ID).upper(), "status": 409}, [9, 15]),
        ({"flow": uuid5(FLOW_ID, "other").hex, "causes": ["409-95a849"]}, [0, 18]),
        ({"flow": "shop"}, [4, 13]),
        ({"deployment": "shop/order-13"}, [13]),
        ({"deployment": "order-4"}, [4]),
        ({"causes": ["409-95a849", "415-4ea9f8"]}, [0, 5, 9, 14, 18]),
        ({"causes": ["409-000000"]}, []),
        ({"error": "there IS no", "status": 404}, [4, 13]),
        ({"plain": PlainMessages("mail/daily"), "deployment": "daily"}, list(range(20))),
        ({"plain": PlainMessages("mail/daily"), "flow": "mail", "status": 415}, [5, 14]),
    ],
    ids=str,
)
def test_letters_match_all_that_is_asked(wanted: dict[str, Any], numbers: list[int]) -> None:
    selection = Selection(**wanted)
    assert [number for number, each in enumerate(letters()) if selection.matches(each)] == numbers
    assert selection.selects_all == (not wanted)


def test_ids_may_be_short() -> None:
    found = letters()
    selection = Selection(ids=(found[3].id[:8], found[5].id))
    assert [number for number, each in enumerate(found) if selection.matches(each)] == [3, 5]
    assert not Selection(status=422).selects_all


def test_a_letter_without_a_time_is_not_since() -> None:
    message = read_message(b"\0\0", b"no JSON")
    taken = Taken(fingerprint(message), 1, None)  # type: ignore[arg-type]  # not acknowledged
    odd = Letter.of(taken, Delivery(1, message))
    assert not Selection(since=datetime(1970, 1, 1, tzinfo=UTC)).matches(odd)
    assert not Selection(flow="shop").matches(odd)
    assert Selection(error="unknown").matches(odd)
