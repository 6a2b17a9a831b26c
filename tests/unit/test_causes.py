"""Dead letters that have one cause are counted together, whatever their ids, numbers and names."""

import pytest

from tests.support.letters import reason
from worker.broker.incoming import read_message
from worker.contract.delivery import Delivery
from worker.contract.message import fingerprint
from worker.operate.cause_groups import MAX_CAUSES, Causes
from worker.operate.causes import cause_of, reason_of
from worker.operate.letter import Letter
from worker.operate.letter_reader import Taken

ID = "5d9c3a9e-7e0c-4a4b-8f0a-0c7f3d1f5a11"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (f"There is no flow {ID}.", "There is no flow …."),
        (f"There is no flow {ID.upper().replace('-', '')}.", "There is no flow …."),
        ("body.flow_id: Field required (and 12 more)", "body.flow_id: Field required"),
        ("body.parameters.items.3.price: Input", "body.parameters.…: Input"),
        ("body.parameters.a key: Input", "body.parameters.…: Input"),
        ("body.customer-7: Extra inputs are not permitted", "body.…: Extra inputs are not permitted"),
        ("header.prefect-automation-id: Input", "header.prefect-automation-id: Input"),
        (
            "A request needs the type 'x' (body.flow_id: Field required)",
            "A request needs the type '…' (body.flow_id: Field required)",
        ),
        ("There is no deployment 'it's/mine'", "There is no deployment '…'"),
        ("Work pool \"a 'b'\" not found.", 'Work pool "…" not found.'),
        ("They can't be checked: don't.", "They can't be checked: don't."),
        ("'cut off at the end …", "'…'"),
        ("Failure: {'a': [1, {'b': 2}]} is not of type 'integer'", "Failure: … is not of type '…'"),
        ("Failure: {'a': [1, {'b", "Failure: …"),
        ("has 1,234,567 bytes; the limit is 1,048,576 bytes.", "has … bytes; the limit is … bytes."),
        ("expected -1.5e-7, at 2026-11-30T12:00:00.123+00:00", "expected …, at …"),
        ("an AMQP 1.0 value, in UTF-8", "an AMQP 1.0 value, in UTF-8"),
        ("in work queue a b because deployment x", "in work queue … because deployment x"),
        ("transaction 0f3a99c2d1 aborted", "transaction … aborted"),
        ("[" * 500, "…"),
        ("", ""),
    ],
)
def test_variable_parts_are_left_out(error: str, expected: str) -> None:
    assert reason_of(error) == expected


def test_letters_of_one_cause_share_a_short_id_that_stays() -> None:
    assert {cause_of(*reason(9 * number)).id for number in range(50)} == {"409-95a849"}
    assert cause_of(404, f"There is no flow {ID}.").id.startswith("404-")
    assert cause_of(None, "moved by the broker: expired: it").id.startswith("broker-")
    assert cause_of(None, "unknown: neither").id.startswith("unknown-")
    assert len({cause_of(*reason(number)).id for number in range(900)}) == 9


def letter(number: int, error: str, failed_at: str | None) -> Letter:
    delivery = Delivery(number, read_message(b"\0\0", str(number).encode()))
    taken = Taken(fingerprint(delivery.message), number, None)  # type: ignore[arg-type]  # not acknowledged
    return Letter(taken, delivery, f"{number:012x}", 422, error, failed_at)


def test_a_cause_has_its_number_its_times_and_the_newest_examples() -> None:
    causes = Causes()
    times = [
        "2026-11-30T12:00:00+00:00",
        "nonsense",
        "2026-11-30T11:30:00+02:00",
        None,
        "0001-01-01T00:00+23:00",
    ]
    for number, at in enumerate(times):
        causes.add(letter(number, f"number {number}", at))
    causes.add(letter(4, "number 4", None))
    causes.add(letter(9, "another", None))
    group, other = causes.groups()
    assert (group.count, group.bytes, group.cause.reason) == (6, 6, "number …")
    assert [at and at.isoformat() for at in (group.first, group.last)] == [
        "2026-11-30T09:30:00+00:00",
        "2026-11-30T12:00:00+00:00",
    ]
    assert group.examples == tuple(f"{number:012x}" for number in (4, 3, 2))
    assert (other.count, other.first, other.last) == (1, None, None)


def test_the_number_of_causes_is_bounded() -> None:
    causes = Causes()
    for number in range(MAX_CAUSES + 50):
        causes.add(letter(number, f"reason{number}x", None))
    groups = causes.groups()
    assert len(groups) == MAX_CAUSES + 1
    assert (groups[0].cause.id, groups[0].count) == ("others", 50)
