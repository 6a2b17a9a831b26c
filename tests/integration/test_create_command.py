"""``create`` turns its options into a request, and prints the worker's answer."""

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.support.command import Done, command
from tests.support.producer import Producer
from tests.support.requests import EVERY_FIELD, FLOW_ID, same_as_sent
from worker.cli import app

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
    done = await create(shared_worker, amqp_url, "--flow-id", "none", "--no-check")
    assert (done.code, done.out) == (1, "")
    assert "body.flow_id" in done.err


async def test_body_for_a_deployment_needs_no_type(shared_worker: Producer, amqp_url: str) -> None:
    """In a database without deployments it is answered with 404."""
    done = await create(shared_worker, amqp_url, "--json", "-", stdin=b'{"deployment_name": "a/b"}')
    assert (done.code, done.out) == (1, "")
    assert "404" in done.err


WRONG = [
    (["--flow-id", "nonsense"], "--flow-id: Input should be a valid UUID"),
    ([], "--flow-id: is needed, or --deployment"),
    (["--flow-id", FLOW_ID, "--state", "WHATEVER"], "--state: type: Input should be 'SCHEDULED'"),
    (["--flow-id", FLOW_ID, "--state", '{"type": "X"}'], "--state: type: Input should be"),
    (["--flow-id", FLOW_ID, "--scheduled-time", "tomorrow"], "--scheduled-time: "),
    (["--deployment", "ab"], "--deployment: 'ab' is neither FLOW NAME/DEPLOYMENT NAME nor an id"),
    (["--deployment", "a/b", "--flow-version", "1"], "--flow-version: is not for a run of a deployment"),
    (["--flow-id", FLOW_ID, "--enforce-parameter-schema"], "--enforce-parameter-schema: is not for a run"),
    (["--flow-id", FLOW_ID, "--parent-task-run-id", "x"], "--parent-task-run-id: Input should be"),
    (["--flow-id", FLOW_ID, "--empirical-policy", '{"retries": "x"}'], "--empirical-policy: retries: "),
    (["--flow-id", FLOW_ID, "--parameters", "[1]"], "--parameters: Input should be a valid dict"),
    (["--json", "/nowhere"], "--json: can't be read: No such file or directory: '/nowhere'"),
    (["--flow-id", FLOW_ID, "--timeout", "0"], "--timeout: has to be above 0"),
    (["--flow-id", FLOW_ID, "--expires", "-1"], "--expires: has to be above 0"),
]


@pytest.mark.parametrize(("arguments", "told"), WRONG, ids=[" ".join(each) for each, _ in WRONG])
def test_wrong_usage_is_told_before_anything_is_sent(arguments: list[str], told: str) -> None:
    """There is no broker at this URL, so whoever connects fails with another code."""
    arguments = ["create", *arguments, "--amqp-url", "amqp://127.0.0.1:1/"]
    done = CliRunner().invoke(app, arguments, env={"COLUMNS": "200", "TERM": "dumb"})
    assert done.exit_code == 2
    assert f"Invalid value for {told}" in done.output


def test_wrong_body_is_told_before_it_is_sent() -> None:
    arguments = ["create", "--json", "-", "--amqp-url", "amqp://127.0.0.1:1/"]
    done = CliRunner().invoke(app, arguments, input='{"deployment_name": "ab"}', env={"COLUMNS": "200"})
    assert done.exit_code == 2
    assert "Invalid value for --json: 422: body.deployment_name: String should match" in done.output
