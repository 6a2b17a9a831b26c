"""The wire contract as an AsyncAPI 3 document. It is made from the models that the worker uses, so
the two always agree.
"""

from typing import Any

from pydantic import BaseModel, Field
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, models_json_schema

from .. import __version__
from .kinds import CREATE, KINDS, Kind
from .message import ERROR_HEADER, ERROR_STATUS_HEADER, ERROR_TRACE_HEADER, FAILED_AT_HEADER
from .plain import PlainMessages
from .record import FlowRunRecord
from .states import STATE_MESSAGE
from .topology import QueueNames

ASYNCAPI = "3.0.0"
# The name of a plain message in the document.
PLAIN = "plainMessage"
SCHEMA_DIALECT = "https://json-schema.org/draft/2020-12/schema"


class ErrorDetail(BaseModel):
    """One error in a request, as pydantic and FastAPI report it."""

    type: str = Field(description="pydantic's name for the error.", examples=["uuid_parsing"])
    loc: list[str | int] = Field(
        description="Where: 'body' or 'header', then the path to the value.", examples=[["body", "flow_id"]]
    )
    msg: str = Field(description="The error in words.")
    input: Any = Field(None, description="The value.")


class Error(BaseModel):
    """The body of an error reply: ``detail``, or for 422 the three other fields."""

    detail: str | None = Field(None, description="The error in words (400, 404, 409, 413, 415).")
    exception_message: str | None = Field(None, description="A fixed text (422).")
    exception_detail: list[ErrorDetail] | None = Field(None, description="All errors (422).")
    request_body: Any = Field(None, description="The request's body as it was read (422).")


def schemas() -> dict[str, dict[str, Any]]:
    """Self-contained JSON Schemas by the names of their files."""
    return {
        **{kind.file: _standalone(kind.model, "validation") for kind in KINDS},
        "flow-run": _standalone(FlowRunRecord, "serialization"),
        "error": _standalone(Error, "serialization"),
    }


def asyncapi(names: QueueNames, plain: PlainMessages | None = None) -> dict[str, Any]:
    """The AsyncAPI document for workers on one request queue.

    Args:
        plain: how the queue's plain messages are read. None: there are none.
    """
    models: list[tuple[type[BaseModel], JsonSchemaMode]] = [
        *((kind.model, "validation") for kind in KINDS),
        (FlowRunRecord, "serialization"),
        (Error, "serialization"),
    ]
    references, definitions = models_json_schema(models, ref_template="#/components/schemas/{model}")
    *bodies, record, error = (references[model] for model in models)
    requests = {kind.message: _ref(f"components/messages/{kind.message}") for kind in KINDS}
    if plain is not None:
        requests[PLAIN] = _ref(f"components/messages/{PLAIN}")
    document: dict[str, Any] = {
        "asyncapi": ASYNCAPI,
        "info": {
            "title": "flow-run-worker",
            "version": __version__,
            "description": "Prefect's POST /api/flow_runs/, POST /api/deployments/{id}/create_flow_run and "
            "GET /api/flow_runs/{id} over a queue: publish a request, get the flow run record as a reply.",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "servers": {"rabbitmq": {"host": "localhost:5672", "protocol": "amqp", "protocolVersion": "0.9.1"}},
        "channels": {
            "requests": {
                "address": names.queue,
                "title": "The request queue",
                "messages": requests,
                "bindings": _queue(names.queue),
            },
            "replies": {
                "address": None,
                "title": "The queue that the request names in reply_to; amq.rabbitmq.reply-to works",
                "messages": {name: _ref(f"components/messages/{name}") for name in ("flowRun", "error")},
            },
            "deadLetters": {
                "address": names.dead_letter_queue,
                "title": "Refused requests, whole",
                "messages": {"deadLetter": _ref("components/messages/deadLetter")},
                "bindings": _queue(names.dead_letter_queue),
            },
            "states": {
                "address": "{stateType}.{flowId}.{deploymentId}.{runId}",
                "title": "States of runs, where WORKER_STATES is final or all",
                "description": "Bind a queue with a pattern, such as *.*.*.RUN_ID or FAILED.#.",
                "parameters": {
                    "stateType": {"description": "The state's type."},
                    "flowId": {"description": "The flow's id."},
                    "deploymentId": {"description": "The deployment's id. Without a deployment: -"},
                    "runId": {"description": "The run's id."},
                },
                "messages": {"flowRunState": _ref("components/messages/flowRunState")},
                "bindings": _exchange(names.states_exchange, "topic"),
            },
        },
        "operations": {
            **{kind.message: _receive(kind.title, kind.message) for kind in KINDS},
            "keepDeadLetter": {
                "action": "send",
                "title": "Keep a refused request with the reason in its headers",
                "channel": _ref("channels/deadLetters"),
                "messages": [_ref("channels/deadLetters/messages/deadLetter")],
            },
            "tellState": {
                "action": "send",
                "title": "Tell a state of any run in the database, at least once",
                "channel": _ref("channels/states"),
                "messages": [_ref("channels/states/messages/flowRunState")],
                "bindings": _amqp({"deliveryMode": 2, "mandatory": False}),
            },
        },
        "components": {
            "messages": {
                **{
                    kind.message: _request(kind, body, typed=kind is not CREATE or plain is not None)
                    for kind, body in zip(KINDS, bodies, strict=True)
                },
                "flowRun": _reply(
                    "flow_run",
                    record,
                    [200, 201],
                    "201: created. 200: the existing run with this key, or the run that is read.",
                ),
                "error": _reply("error", error, [400, 404, 409, 413, 415, 422], "As Prefect's API answers."),
                "deadLetter": {
                    "headers": _headers(
                        **{
                            ERROR_STATUS_HEADER: "The status that was replied (an integer).",
                            ERROR_HEADER: "The reason in one line.",
                            FAILED_AT_HEADER: "The time of the refusal, ISO 8601.",
                            ERROR_TRACE_HEADER: "The worker's span (traceparent), where traces are on.",
                        }
                    ),
                    "payload": {"description": "The request's body, unchanged."},
                },
                "flowRunState": {
                    "contentType": "application/json",
                    "title": "A state of a run",
                    "description": "The run's record as it is when it is told, with this state in state, "
                    "state_id, state_type and state_name. message_id is the state's id: drop doubles by it. "
                    "timestamp is the state's.",
                    "payload": record,
                    "bindings": _amqp({"messageType": STATE_MESSAGE}),
                },
            },
            "schemas": definitions["$defs"],
        },
    }
    if plain is not None:
        document["operations"]["receivePlainMessage"] = _receive(
            f"Start a run of {plain.deployment} for each plain message", PLAIN, replied=plain.replies
        )
        document["components"]["messages"][PLAIN] = _plain(plain)
    exchange = names.exchange
    if exchange is not None:
        document["channels"]["exchange"] = {
            "address": names.routing_key,
            "title": "The exchange, for producers that publish by name and routing key",
            "messages": requests,
            "bindings": _exchange(exchange, "direct"),
        }
    return document


def _standalone(model: type[BaseModel], mode: JsonSchemaMode) -> dict[str, Any]:
    return {
        "$schema": SCHEMA_DIALECT,
        **model.model_json_schema(mode=mode, schema_generator=GenerateJsonSchema),
    }


def _queue(name: str) -> dict[str, Any]:
    queue = {"name": name, "durable": True, "exclusive": False, "autoDelete": False, "vhost": "/"}
    return _amqp({"is": "queue", "queue": queue})


def _amqp(binding: dict[str, Any]) -> dict[str, Any]:
    return {"amqp": {**binding, "bindingVersion": "0.3.0"}}


def _ref(place: str) -> dict[str, str]:
    return {"$ref": f"#/{place}"}


def _exchange(name: str, type_: str) -> dict[str, Any]:
    exchange = {"name": name, "type": type_, "durable": True, "autoDelete": False, "vhost": "/"}
    return _amqp({"is": "routingKey", "exchange": exchange})


def _headers(**described: str) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {name: {"description": description} for name, description in described.items()},
    }


def _reply(type_: str, payload: Any, statuses: list[int], description: str) -> dict[str, Any]:
    return {
        "contentType": "application/json",
        "headers": {
            "type": "object",
            "properties": {
                "status": {"type": "integer", "enum": statuses, "description": description},
                ERROR_HEADER: {"type": "string", "description": "The reason in one line."},
                "traceparent": {"type": "string", "description": "The worker's span, where traces are on."},
            },
            "required": ["status"],
        },
        "payload": payload,
        "correlationId": {"description": "The request's.", "location": "$message.header#/correlation_id"},
        "bindings": _amqp({"messageType": type_}),
    }


def _receive(title: str, message: str, *, replied: bool = True) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "action": "receive",
        "title": title,
        "channel": _ref("channels/requests"),
        "messages": [_ref(f"channels/requests/messages/{message}")],
        "bindings": _amqp({"ack": True}),
    }
    if replied:
        operation["reply"] = {
            "address": {
                "description": "The request's property reply_to.",
                "location": "$message.header#/reply_to",
            },
            "channel": _ref("channels/replies"),
            "messages": [_ref(f"channels/replies/messages/{name}") for name in ("flowRun", "error")],
        }
    return operation


def _plain(plain: PlainMessages) -> dict[str, Any]:
    if plain.parameter is None:
        payload = {"type": "object", "description": "The run's parameters."}
    else:
        payload = {"description": f"Any JSON: the value of the parameter {plain.parameter}."}
    return {
        "title": f"Any message without the type of a request: a run of {plain.deployment}",
        "description": "The property message_id, or source and id of a CloudEvent in binary mode, make a "
        "run once.",
        "contentType": "application/json",
        "payload": payload,
    }


def _request(kind: Kind, payload: Any, *, typed: bool) -> dict[str, Any]:
    request = {
        "contentType": "application/json",
        "headers": _headers(
            **{
                "x-prefect-api-version": "The producer's API version. Versions that are too old are refused.",
                "prefect-automation-id": "Id of the automation that asks (created_by), with its name.",
                "prefect-automation-name": "The automation's name.",
                "traceparent": "W3C trace context; kept in the first state's details.",
                "tracestate": "W3C trace context.",
            }
        ),
        "payload": payload,
        "correlationId": {"location": "$message.header#/correlation_id"},
        "examples": [{"payload": example} for example in _examples(kind.model)],
    }
    if typed:  # any other type stands for CREATE or for a plain message
        request["bindings"] = _amqp({"messageType": kind.type})
    return request


def _examples(model: type[BaseModel]) -> list[Any]:
    extra = model.model_config.get("json_schema_extra")
    examples = extra.get("examples") if isinstance(extra, dict) else None
    return examples if isinstance(examples, list) else []
