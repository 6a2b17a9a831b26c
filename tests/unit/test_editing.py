"""Fields of a dead letter's body are set and removed, and a changed letter is checked."""

import json
from typing import Any

import pytest

from worker.broker.incoming import read_message
from worker.contract.plain import PlainMessages
from worker.operate.editing import ChangeRefused, Checking, Setting, changing, pretty

BODY = {"flow_id": 1, "parameters": {"orders": [{"id": 1}, {"id": 2}]}, "tags": ["a", "b"]}
CHECKING = Checking(max_body_bytes=1000, max_parameter_size=1000)


@pytest.mark.parametrize(
    ("change", "place", "value"),
    [
        ("flow_id=5d9c3a9e", ["flow_id"], "5d9c3a9e"),
        ("name=a=b", ["name"], "a=b"),
        ("name=", ["name"], ""),
        ('name="7"', ["name"], "7"),
        ("parameters.orders.1.id=4711", ["parameters", "orders", 1, "id"], 4711),
        ("parameters.customer.name=Jo", ["parameters", "customer", "name"], "Jo"),
        ("parameters=null", ["parameters"], None),
        ("tags.0=c", ["tags", 0], "c"),
        ("parameters.x=18446744073709551616", ["parameters", "x"], 18446744073709551616),
    ],
)
def test_a_field_is_set(change: str, place: list[Any], value: Any) -> None:
    found = json.loads(changing([Setting.of(change)])(json.dumps(BODY).encode()))
    for name in place:
        found = found[name]
    assert found == value


def test_fields_are_removed_in_their_order() -> None:
    removing = [Setting.removing(path) for path in ("tags.0", "tags.0", "parameters.orders.0.id", "flow_id")]
    assert json.loads(changing(removing)(json.dumps(BODY).encode())) == {
        "parameters": {"orders": [{}, {"id": 2}]},
        "tags": [],
    }


@pytest.mark.parametrize("path", ["tags.2", "tags.x", "flow_id.x", "missing.x", "tags.0.x"])
def test_a_path_that_leads_nowhere_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="it has no"):
        changing([Setting.removing(path)])(json.dumps(BODY).encode())


@pytest.mark.parametrize("text", ["flow_id", "=7", ".x=7", "a..b=7"])
def test_what_is_no_change_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no(t PATH=VALUE| path)"):
        Setting.of(text)


@pytest.mark.parametrize("body", [b"", b"\xff", b"[" * 100_000, b'{"a": 1'])
def test_a_body_that_is_no_json_stays_as_it_is(body: bytes) -> None:
    assert pretty(body) == body
    with pytest.raises(ValueError, match="no JSON"):
        changing([])(body)


def test_half_a_surrogate_pair_can_be_edited() -> None:
    assert json.loads(pretty(b'{"a": "\\ud800"}')) == {"a": "\ud800"}
    assert json.loads(changing([Setting.of("b=1")])(b'{"a": "\\ud800"}')) == {"a": "\ud800", "b": 1}


def test_a_changed_letter_is_checked_as_its_queue_reads_it() -> None:
    message = read_message(b"\0\0", b'{"order": 7}')
    with pytest.raises(ChangeRefused, match=r"a worker would refuse it: 422: body\.flow_id"):
        CHECKING.check("id", message)
    plain = Checking(1000, 1000, PlainMessages("shop/order"))
    plain.check("id", message)
    with pytest.raises(ChangeRefused, match="413"):
        plain.check("id", read_message(b"\0\0", b'"%b"' % bytes(1000)))
