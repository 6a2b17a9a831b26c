"""Sends a request from the page's form, and follows the run to its end. Knows no page."""

import json
from secrets import token_hex
from typing import Any

from worker.client import FlowRunClient
from worker.client.errors import ClientError, FlowRunRefused, StatesNotTold
from worker.client.outcomes import CreateOutcome
from worker.contract.kinds import CREATE, FROM_DEPLOYMENT, names_deployment
from worker.contract.record import FlowRunRecord
from worker.settings import Settings
from worker.ui.jobs import Job

# Seconds for the reply, and for the end of the run.
REPLY_SECONDS = 30.0
END_SECONDS = 600.0


def example(settings: Settings) -> str:
    """A body to begin with."""
    if settings.deployment is not None or settings.database_kind == "prefect":
        fields: dict[str, Any] = {"deployment_name": settings.deployment or "FLOW/DEPLOYMENT"}
    else:
        fields = {"flow_id": "5d9c3a9e-7e0c-4a4b-8f0a-0c7f3d1f5a11"}
    # A new key each time: another one may be somebody's.
    return json.dumps({**fields, "parameters": {}, "idempotency_key": f"try-{token_hex(4)}"}, indent=2)


async def send(job: Job, settings: Settings, body: str, *, check: bool, wait: bool) -> None:
    """Send a request. The job shows the record or the error's body, and each published state.

    Raises:
        ClientError: there is no answer.
    """

    def on_reply(outcome: CreateOutcome) -> None:
        word = "created" if outcome.created else "existing: a run with this key was there already"
        job.lines.append(f"{outcome.status} {word}.")
        _show(job, outcome.run)

    def on_state(record: FlowRunRecord) -> None:
        at = "" if record.state is None else f" {record.state.timestamp:%H:%M:%S}"
        job.lines.append(f"{record.state_name or record.state_type}{at}")
        _show(job, record)

    type_ = _type(body)
    async with FlowRunClient(settings.amqp_url, queue=settings.queue, timeout=REPLY_SECONDS) as client:
        try:
            if wait:
                await client.request_and_wait(
                    body.encode(), END_SECONDS, type=type_, on_reply=on_reply, on_state=on_state, check=check
                )
            else:
                on_reply(await client.request(body.encode(), type=type_, check=check))
        except StatesNotTold:
            # Found before the request was sent.
            job.lines.append("No states are told here (WORKER_STATES is off): only the reply is shown.")
            on_reply(await client.request(body.encode(), type=type_, check=check))
        except FlowRunRefused as refused:
            job.lines.append(str(refused))
            job.shown = [json.dumps(refused.body, indent=2, ensure_ascii=False)]
        except ClientError as error:
            if error.record is None:
                raise
            job.lines.append(str(error))


def _type(body: str) -> str:
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        fields = None
    named = isinstance(fields, dict) and names_deployment(fields)
    return FROM_DEPLOYMENT.type if named else CREATE.type


def _show(job: Job, record: FlowRunRecord) -> None:
    job.shown = [record.model_dump_json(indent=2)]
