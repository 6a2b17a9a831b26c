"""``create``: sends one request from the shell, to try things out and for scripts."""

import json
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from worker.cli.options import AmqpUrl, Queue, err, escape, print_json, run_async

if TYPE_CHECKING:
    from collections.abc import Iterator

    from worker.client import FlowRunRefused
    from worker.client.waits import OnState
    from worker.contract.record import FlowRunRecord


def create(
    flow_id: Annotated[str | None, typer.Option(help="The flow to run (a UUID).")] = None,
    name: Annotated[str | None, typer.Option(help="The run's name (default: two random words).")] = None,
    idempotency_key: Annotated[
        str | None, typer.Option(help="Later requests with this flow and key return the same run.")
    ] = None,
    parameters: Annotated[str | None, typer.Option(help="The flow's parameters, a JSON object.")] = None,
    context: Annotated[
        str | None, typer.Option(help="Additional context, for the flow to read: a JSON object.")
    ] = None,
    state: Annotated[
        str | None, typer.Option(help="A state type such as SCHEDULED, or a state as JSON.")
    ] = None,
    tag: Annotated[list[str] | None, typer.Option(help="A tag. May be given several times.")] = None,
    label: Annotated[list[str] | None, typer.Option(help="NAME=VALUE. May be given several times.")] = None,
    deployment: Annotated[
        str | None,
        typer.Option(help="Run this deployment instead of a flow: FLOW NAME/DEPLOYMENT NAME, or its id."),
    ] = None,
    param: Annotated[
        list[str] | None,
        typer.Option(
            "--param", help="NAME=VALUE. A value that is not JSON is a text. May be given several times."
        ),
    ] = None,
    scheduled_time: Annotated[
        str | None, typer.Option(help="The start of a SCHEDULED run (ISO 8601, UTC without a zone).")
    ] = None,
    enforce_parameter_schema: Annotated[
        bool | None,
        typer.Option(
            metavar="",
            help="With --deployment: enforce its parameter schema (default: the deployment's setting).",
        ),
    ] = None,
    flow_version: Annotated[str | None, typer.Option(help="The flow's version.")] = None,
    deployment_id: Annotated[
        str | None, typer.Option(help="The deployment that a flow's run belongs to (a UUID).")
    ] = None,
    parent_task_run_id: Annotated[
        str | None, typer.Option(help="For a subflow: its task run in the parent flow (a UUID).")
    ] = None,
    infrastructure_document_id: Annotated[
        str | None, typer.Option(help="The infrastructure's block document (a UUID).")
    ] = None,
    empirical_policy: Annotated[str | None, typer.Option(help="How the run retries: a JSON object.")] = None,
    work_pool_name: Annotated[str | None, typer.Option(help="The work pool to run it in.")] = None,
    work_queue_name: Annotated[str | None, typer.Option(help="The queue in the work pool.")] = None,
    job_variables: Annotated[
        str | None, typer.Option(help="Overrides for the infrastructure: a JSON object.")
    ] = None,
    json_file: Annotated[
        str | None, typer.Option("--json", help="The whole body from a file, or - for standard input.")
    ] = None,
    type_: Annotated[str | None, typer.Option("--type", help="With --json: the message's type.")] = None,
    no_reply: Annotated[
        bool, typer.Option("--no-reply", metavar="", help="Only publish; print the message id.")
    ] = False,
    no_check: Annotated[
        bool, typer.Option("--no-check", metavar="", help="Send the request even if it is found to be wrong.")
    ] = False,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the reply, above 0.")] = 30.0,
    expires: Annotated[
        float | None,
        typer.Option(help="Seconds after which the request leaves the queue unless a worker has taken it."),
    ] = None,
    wait: Annotated[
        bool,
        typer.Option(
            "--wait",
            metavar="",
            help="Wait for the end of the run, and print its last record. The exit code is 0 for COMPLETED.",
        ),
    ] = False,
    wait_timeout: Annotated[
        float | None, typer.Option(help="With --wait: most seconds to wait for the end, above 0.")
    ] = None,
    amqp_url: AmqpUrl = None,
    queue: Queue = None,
) -> None:
    """Send one request and print the flow run record (JSON on standard output)."""
    from worker.client import ClientError, CreateOutcome, FlowRunClient, FlowRunRefused
    from worker.client.fields import named_deployment
    from worker.client.options import Options
    from worker.contract.kinds import FROM_DEPLOYMENT
    from worker.settings import load_settings

    for seconds, option in (
        (timeout, "--timeout"),
        (expires, "--expires"),
        (wait_timeout, "--wait-timeout"),
    ):
        if seconds is not None and not seconds > 0:
            raise typer.BadParameter("has to be above 0", param_hint=option)
    if wait_timeout is not None and not wait:
        raise typer.BadParameter("is for --wait", param_hint="--wait-timeout")
    if wait and no_reply:
        raise typer.BadParameter("needs a reply, so not --no-reply", param_hint="--wait")
    settings = load_settings(amqp_url=amqp_url, queue=queue)
    options: Options = {"check": not no_check, "expires": expires}
    request: bytes | dict[str, Any]
    if json_file is not None:
        request = _read(json_file)
        type_ = type_ or _type(request)
    else:
        request = {
            "name": name,
            "idempotency_key": idempotency_key,
            "parameters": _parameters(parameters, param),
            "context": _json(context, "--context"),
            "state": _state(state, scheduled_time),
            "tags": tag,
            "labels": dict(_named(each, "--label") for each in label) if label else None,
            "parent_task_run_id": parent_task_run_id,
            "infrastructure_document_id": infrastructure_document_id,
            "empirical_policy": _json(empirical_policy, "--empirical-policy"),
            "work_queue_name": work_queue_name,
            "job_variables": _json(job_variables, "--job-variables"),
            # Each of these is for one kind of run. The worker refuses it for the other.
            "enforce_parameter_schema": enforce_parameter_schema,
            "flow_id": flow_id,
            "flow_version": flow_version,
            "deployment_id": deployment_id,
            "work_pool_name": work_pool_name,
        }
        if deployment is not None:
            request |= named_deployment(deployment)
            type_ = FROM_DEPLOYMENT.type

    def tell(outcome: CreateOutcome) -> None:
        if outcome.created:
            err.print(f"[green]{outcome.status} created[/]")
        else:
            err.print("[yellow]200 existing[/]: a run with this key was there already")

    async def send() -> "FlowRunRecord | None":
        async with FlowRunClient(settings.amqp_url, queue=settings.queue, timeout=timeout) as client:
            if no_reply:
                print(await client.publish(request, type=type_, **options))
                return None
            if not wait:
                outcome = await client.request(request, type=type_, **options)
                tell(outcome)
                return outcome.run
            with _progress() as on_state:
                return await client.request_and_wait(
                    request, wait_timeout or True, type=type_, on_reply=tell, on_state=on_state, **options
                )

    try:
        record = run_async(send())
    except FlowRunRefused as refused:
        if refused.maybe_sent:
            raise
        raise _wrong_usage(refused, json_file, deployment) from None
    except ClientError as error:
        if error.record is not None:
            print_json(error.record.model_dump_json(indent=2))
        raise
    if record is not None:
        print_json(record.model_dump_json(indent=2))
        if wait and record.state_type != "COMPLETED":
            raise typer.Exit(1)


@contextmanager
def _progress() -> "Iterator[OnState]":
    """A function that shows a run's state in a line on standard error, if that is a terminal."""
    if not err.is_terminal:
        yield lambda record: None
        return
    with err.status("creating the run") as line:
        yield lambda record: line.update(
            f"[bold]{escape(record.name)}[/] [dim]{record.id}[/]  {escape(record.state_name or '')}"
        )


# The options of fields that have another name.
_OPTIONS = {
    "deployment_name": "--deployment",
    "tags": "--tag",
    "labels": "--label",
    "scheduled_time": "--scheduled-time",
}


def _wrong_usage(
    refused: "FlowRunRefused", json_file: str | None, deployment: str | None
) -> typer.BadParameter:
    """The error for a request that was found wrong before it was sent. It names the first wrong
    option.
    """
    if not refused.errors or json_file is not None:
        return typer.BadParameter(str(refused), param_hint=None if json_file is None else "--json")
    first = refused.errors[0]
    place = [str(each) for each in first["loc"][1:]]
    if place == ["flow_id"] and first["type"] == "missing":
        return typer.BadParameter("is needed, or --deployment", param_hint="--flow-id")
    if place == ["deployment_name"]:
        return typer.BadParameter(
            f"'{deployment}' is neither FLOW NAME/DEPLOYMENT NAME nor an id", param_hint="--deployment"
        )
    field = next((each for each in place if each in _OPTIONS), place[0] if place else "")
    option = _OPTIONS.get(field, f"--{field.replace('_', '-')}")
    if first["type"] == "extra_forbidden" and len(place) == 1:
        what = "a run of a deployment" if deployment is not None else "a run without --deployment"
        return typer.BadParameter(f"is not for {what}", param_hint=option)
    within = ".".join(place[1:])
    told = f"{within + ': ' if within else ''}{first['msg']} ({first.get('input')!r})"
    return typer.BadParameter(told, param_hint=option)


def _read(json_file: str) -> bytes:
    try:
        return sys.stdin.buffer.read() if json_file == "-" else Path(json_file).read_bytes()
    except OSError as error:
        told = f"can't be read: {error.strerror}: '{json_file}'"
        raise typer.BadParameter(told, param_hint="--json") from None


def _type(body: bytes) -> str | None:
    """The type of a body that can only ask for a run of a deployment."""
    from worker.contract.kinds import FROM_DEPLOYMENT, names_deployment

    try:
        fields = json.loads(body)
    except ValueError:
        return None  # the check before sending explains it
    return FROM_DEPLOYMENT.type if isinstance(fields, dict) and names_deployment(fields) else None


def _json(text: str | None, option: str) -> Any:
    if text is None:
        return None
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise typer.BadParameter(f"is not JSON: {error}", param_hint=option) from None


def _parameters(text: str | None, named: list[str] | None) -> Any:
    parameters = _json(text, "--parameters")
    if not named:
        return parameters
    if parameters is not None and not isinstance(parameters, dict):
        raise typer.BadParameter("is no JSON object", param_hint="--parameters")
    return {**(parameters or {}), **dict(_parameter(each) for each in named)}


def _parameter(text: str) -> tuple[str, Any]:
    name, value = _named(text, "--param")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def _state(text: str | None, scheduled_time: str | None) -> Any:
    if scheduled_time is not None:
        if text not in (None, "SCHEDULED"):
            raise typer.BadParameter("is for a SCHEDULED run", param_hint="--scheduled-time")
        return {"type": "SCHEDULED", "state_details": {"scheduled_time": scheduled_time}}
    # The client turns a type alone into a state.
    return _json(text, "--state") if text and text.lstrip().startswith("{") else text


def _named(text: str, option: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise typer.BadParameter(f"'{text}' is not NAME=VALUE", param_hint=option)
    return name, value
