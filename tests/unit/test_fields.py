"""A field of a request occurs everywhere that a producer or the worker needs it. A field that was
added only to the request's model fails here, with one failing test for each missing place.
"""

import dataclasses
import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path

import typer
from alembic.script import ScriptDirectory

from tests.conformance.cases import CASES
from tests.conformance.deployment_cases import CASES as DEPLOYMENT_CASES
from tests.support.requests import EVERY_FIELD, request, same_as_sent
from worker.cli import app
from worker.client import DeploymentRunFields, FlowRunFields
from worker.contract.asyncapi import schemas
from worker.contract.deployment_request import CreateFlowRunFromDeployment
from worker.contract.flow_run import FlowRun
from worker.contract.kinds import KINDS
from worker.contract.record import FlowRunRecord, encode_record
from worker.contract.request import CreateFlowRun
from worker.runs.creation import RUNS
from worker.store import migrations, tables

FIELDS = CreateFlowRun.model_fields.keys()
OF_A_DEPLOYMENT = CreateFlowRunFromDeployment.model_fields.keys()
# Identifies the deployment: one argument of the client, one option of the command.
WHICH = {"deployment_id", "deployment_name"}
# Checked, but not stored.
NOT_STORED = {"deployment_name", "enforce_parameter_schema"}
# Needs a Prefect server's database: the run gets the pool's queue.
NEEDS_A_POOL = {"work_pool_name"}
# Fields of a row in memory that come from other tables.
FROM_OTHER_TABLES = {"state", "work_pool_id", "work_pool_name", "pool_queue_name"}
# Repeatable options of the command, named in the singular.
ONE_EACH = {"tag": "tags", "label": "labels"}


def test_tests_send_every_field() -> None:
    """If it fails, add the field to ``EVERY_FIELD``: the tests there follow it to the database."""
    assert EVERY_FIELD.keys() | NEEDS_A_POOL == FIELDS


def test_row_and_record_have_every_field() -> None:
    fields = {name: value for name, value in EVERY_FIELD.items() if name != "flow_id"}
    record = json.loads(encode_record(request(**fields).run, datetime.now(UTC)))
    same_as_sent(record)
    assert record.keys() >= FIELDS


def test_row_has_every_field_of_a_request_for_a_deployment() -> None:
    assert {field.name for field in dataclasses.fields(FlowRun)} >= OF_A_DEPLOYMENT - NOT_STORED


def test_record_is_written_as_its_model_says() -> None:
    written = json.loads(encode_record(request().run, datetime.now(UTC)))
    assert list(written) == list(FlowRunRecord.model_fields)


def test_table_has_every_column_of_a_row() -> None:
    """In the row's order: a row is read into a ``FlowRun`` by position."""
    columns = [each.name for each in dataclasses.fields(FlowRun) if each.name not in FROM_OTHER_TABLES]
    assert [column.name for column in tables.flow_run.columns] == columns


async def test_migrations_make_every_column(tmp_path: Path) -> None:
    file = tmp_path / "runs.db"
    await migrations.upgrade(f"sqlite+aiosqlite:///{file}")
    with closing(sqlite3.connect(file)) as connection:
        made = {row[1] for row in connection.execute("PRAGMA table_info(flow_run)")}
    assert made == {column.name for column in tables.flow_run.columns}


def test_migrations_are_known_by_the_names_of_their_files() -> None:
    scripts = ScriptDirectory(str(Path(migrations.__file__).parent))
    in_order = [script.revision for script in scripts.walk_revisions()][::-1]
    assert in_order == migrations._revisions()


def test_client_takes_every_field() -> None:
    assert {"flow_id", *FlowRunFields.__annotations__} == FIELDS
    assert {*WHICH, *DeploymentRunFields.__annotations__} == OF_A_DEPLOYMENT


def test_command_takes_every_field() -> None:
    create = typer.main.get_command(app).commands["create"]  # type: ignore[attr-defined]  # a group
    options = {ONE_EACH.get(parameter.name, parameter.name) for parameter in create.params}
    assert options >= FIELDS
    assert options >= OF_A_DEPLOYMENT - WHICH | {"deployment"}


def test_schema_describes_every_field() -> None:
    for schema, fields in (("create-flow-run", FIELDS), ("create-flow-run-from-deployment", OF_A_DEPLOYMENT)):
        properties = schemas()[schema]["properties"]
        assert {name for name in properties if "description" in properties[name]} == fields


def test_each_kind_of_request_asks_for_a_run() -> None:
    assert RUNS.keys() == set(KINDS)


def test_schemas_that_are_delivered_are_those_of_the_models() -> None:
    folder = resources.files("worker.contract") / "schemas"
    for name, schema in schemas().items():
        assert json.loads((folder / f"{name}.schema.json").read_text()) == schema


def test_every_field_is_compared_with_prefect() -> None:
    assert set(compared()) >= FIELDS
    assert {name for case in DEPLOYMENT_CASES for name in case.body} >= OF_A_DEPLOYMENT - WHICH


def compared() -> Iterator[str]:
    for case in CASES:
        try:
            body = json.loads(case.raw)
        except (ValueError, RecursionError):
            continue
        if isinstance(body, dict):
            yield from body
