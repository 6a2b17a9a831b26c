"""The committed contract documents are current, valid, and match the messages on the wire."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator, Draft202012Validator

from tests.conftest import StartWorker
from tests.support.command import command
from tests.support.producer import Producer
from tests.support.requests import EVERY_FIELD, FLOW_ID
from tests.support.worker_process import ROOT

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
    document = committed("asyncapi.json")
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
