"""The committed contract documents are current, valid, and match the messages on the wire."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession
from jsonschema import Draft7Validator, Draft202012Validator

from tests.conftest import StartWorker
from tests.support.command import command
from tests.support.producer import Producer
from tests.support.requests import EVERY_FIELD, FLOW_ID
from tests.support.worker_process import ROOT
from worker.contract.asyncapi import asyncapi
from worker.contract.plain import PlainMessages
from worker.contract.topology import QueueNames

SCHEMAS = ROOT / "worker" / "contract" / "schemas"
ASYNCAPI_SPECS = "@asyncapi/specs@6.11.1"


def committed(name: str) -> Any:
    return json.loads((SCHEMAS / name).read_text())


def validator(name: str) -> Draft202012Validator:
    schema = committed(f"{name}.schema.json")
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)


async def test_the_committed_documents_are_current(tmp_path: Path) -> None:
    """If it fails: ``flow-run-worker asyncapi --folder worker/contract/schemas``."""
    done = await command("asyncapi", "--folder", str(tmp_path))
    assert done.code == 0, done.err
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {
        file.name: file.read_text() for file in SCHEMAS.iterdir()
    }
    assert json.loads((await command("asyncapi")).out) == committed("asyncapi.json")


async def test_it_is_about_the_queue_of_this_worker() -> None:
    document = json.loads((await command("asyncapi", "--queue", "mine.in")).out)
    assert document["channels"]["requests"]["address"] == "mine.in"
    assert document["channels"]["exchange"]["bindings"]["amqp"]["exchange"]["name"] == "mine"
    assert "exchange" not in json.loads((await command("asyncapi", "--queue", "mine")).out)["channels"]


def plain(parameter: str | None, *, replies: bool) -> dict[str, Any]:
    return asyncapi(QueueNames("ship"), PlainMessages("ship/production", parameter, replies))


def test_plain_messages_of_the_queue_are_in_it() -> None:
    document = plain(None, replies=False)
    message = document["components"]["messages"]["plainMessage"]
    assert "plainMessage" in document["channels"]["requests"]["messages"]
    assert "ship/production" in message["title"]
    assert message["payload"]["type"] == "object"
    assert "reply" not in document["operations"]["receivePlainMessage"]
    # Without its type, a create request would be a plain message.
    create = document["components"]["messages"]["createFlowRun"]
    assert create["bindings"]["amqp"]["messageType"] == "create_flow_run"
    document = plain("order", replies=True)
    payload = document["components"]["messages"]["plainMessage"]["payload"]
    assert "type" not in payload
    assert "order" in payload["description"]
    assert "reply" in document["operations"]["receivePlainMessage"]


async def test_a_worker_serves_the_document_of_its_own_queue(
    start_worker: StartWorker, sqlite_url: str
) -> None:
    worker = start_worker(sqlite_url)
    async with ClientSession() as session, session.get(f"{worker.http}/asyncapi.json") as answer:
        assert answer.content_type == "application/json"
        served = await answer.json()
    printed = await command("asyncapi", "--queue", served["channels"]["requests"]["address"])
    assert served == json.loads(printed.out)


@pytest.mark.skipif(not shutil.which("npm"), reason="no npm here to fetch AsyncAPI's schema with")
def test_it_is_an_asyncapi_3_document(tmp_path: Path) -> None:
    subprocess.run(
        ["npm", "install", "--prefix", str(tmp_path), "--no-audit", "--no-fund", "--silent", ASYNCAPI_SPECS],
        check=True,
        timeout=120,
    )
    schema = json.loads(
        (tmp_path / "node_modules/@asyncapi/specs/schemas/3.0.0-without-$id.json").read_text()
    )
    for document in (committed("asyncapi.json"), plain("order", replies=True)):
        assert [
            f"{error.json_path}: {error.message}" for error in Draft7Validator(schema).iter_errors(document)
        ] == []
    document["operations"]["createFlowRun"]["action"] = "no such action"
    assert list(Draft7Validator(schema).iter_errors(document))


async def test_what_goes_over_the_wire_is_what_the_schemas_say(
    start_worker: StartWorker, producer: Producer, database_url: str
) -> None:
    start_worker(database_url, migrate="true")
    request, record, error = validator("create-flow-run"), validator("flow-run"), validator("error")
    for body in ({"flow_id": FLOW_ID}, EVERY_FIELD):
        request.validate(body)
        reply = await producer.request(body)
        assert reply.status == 201
        record.validate(reply.body)
        assert reply.body.keys() == record.schema["properties"].keys()
    for wrong in (
        {},
        {"flow_id": "x"},
        {"flow_id": FLOW_ID, "nonsense": 1},
        {"flow_id": FLOW_ID, "tags": "x"},
    ):
        assert list(request.iter_errors(wrong)), wrong
        reply = await producer.request(wrong)
        assert reply.status == 422
        error.validate(reply.body)
    reply = await producer.request({"flow_id": FLOW_ID}, headers={"x-prefect-api-version": "x"})
    assert reply.status == 400
    error.validate(reply.body)
