"""``create`` turns its options into a request, and prints the worker's answer."""

import json
from typing import Any

from tests.support.command import Done, command
from tests.support.producer import Producer
from tests.support.requests import EVERY_FIELD, FLOW_ID, same_as_sent

# Options can only give labels that are text.
LABELS = {"team": "blue", "rule": "a=b"}


async def create(worker: Producer, amqp_url: str, *arguments: str, stdin: bytes | None = None) -> Done:
    return await command("create", *arguments, stdin=stdin, amqp_url=amqp_url, queue=worker.queue)


def options() -> list[str]:
    """:data:`EVERY_FIELD` as options, with labels that are text."""
    fields = {name: value for name, value in EVERY_FIELD.items() if name not in ("tags", "labels")}
    return [
        *(word for tag in EVERY_FIELD["tags"] for word in ("--tag", tag)),
        *(word for name, value in LABELS.items() for word in ("--label", f"{name}={value}")),
        *(
            word
            for name, value in fields.items()
            for word in (
                f"--{name.replace('_', '-')}",
                value if isinstance(value, str) else json.dumps(value),
            )
        ),
    ]


async def test_every_option_goes_into_the_run(shared_worker: Producer, amqp_url: str) -> None:
    created = await create(shared_worker, amqp_url, *options())
    assert (created.code, created.err) == (0, "201 created\n")
    record: dict[str, Any] = json.loads(created.out)
    assert record["labels"] == {"prefect.flow.id": FLOW_ID, **LABELS}
    same_as_sent(record | {"labels": {"prefect.flow.id": FLOW_ID, **EVERY_FIELD["labels"]}})

    existing = await create(shared_worker, amqp_url, *options())
    assert existing.code == 0
    assert existing.err.startswith("200 existing")
    assert json.loads(existing.out)["id"] == record["id"]


async def test_state_may_be_its_type_alone(shared_worker: Producer, amqp_url: str) -> None:
    done = await create(shared_worker, amqp_url, "--flow-id", FLOW_ID, "--state", "scheduled")
    assert json.loads(done.out)["state_type"] == "SCHEDULED"


async def test_body_can_come_from_standard_input(shared_worker: Producer, amqp_url: str) -> None:
    body = json.dumps({"flow_id": FLOW_ID, "name": "from a file"}).encode()
    done = await create(shared_worker, amqp_url, "--json", "-", stdin=body)
    assert json.loads(done.out)["name"] == "from a file"


async def test_refusal_ends_it_with_the_reason(shared_worker: Producer, amqp_url: str) -> None:
    done = await create(shared_worker, amqp_url, "--flow-id", "none")
    assert (done.code, done.out) == (1, "")
    assert "body.flow_id" in done.err
