"""Reasons to refuse a request: each class is a status with Prefect's body. A fault is no answer."""

from typing import Any, Self

from .encoding import dumps
from .printable import printable

# Errors in one answer. Each shows its place and the wrong value, so more could make the answer many
# times as large as the request.
MAX_ERRORS = 100
# Longest reason, in characters: people read it in a header and in the log.
MAX_LINE = 500


# The reason for refusing to read a run, where no states are published.
STATES_NOT_TOLD = "states are not told here"


class Fault(Exception):
    """A fault of ours, such as a database that is down. The worker waits it out, and answers
    nothing.

    Attributes:
        ended: whether the connection ended, so that one run may be the cause.
    """

    ended = False


class DeploymentMissing(Fault):
    """The deployment of plain messages is not there. They wait for it."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"There is no deployment '{name}' (WORKER_DEPLOYMENT) yet: messages wait in the queue for it"
        )


class Refusal(Exception):
    """A request that gets a 4xx and goes to the dead letters.

    Attributes:
        status: the HTTP status that Prefect answers.
        body: the JSON object that Prefect answers with.
        line: the reason in one printable line, for a header and for logs.
    """

    status: int

    def __init__(self, line: str, body: dict[str, Any] | None = None) -> None:
        super().__init__(line)
        self.line = _one_line(line)
        self.body: dict[str, Any] = {"detail": line} if body is None else body

    def freed(self) -> Self:
        """The same without its traceback, whose frames hold the decoded request."""
        self.__context__ = None
        return self.with_traceback(None)


class ApiVersionRefused(Refusal):
    """``x-prefect-api-version`` is malformed or too old (``EnforceMinimumAPIVersion``)."""

    status = 400


class BodyUnreadable(Refusal):
    """The body can't be read as text, or is nested too deep to be parsed. FastAPI has one text for
    both.
    """

    status = 400

    def __init__(self) -> None:
        super().__init__("There was an error parsing the body")


class ReplyToRefused(Refusal):
    """The request names a reply queue that the worker must not publish to. The refusal is not sent
    there either.
    """

    status = 400

    def __init__(self, reply_to: str) -> None:
        super().__init__(f"Replies are not sent to the queue '{reply_to}'.")


class NotAllowed(Refusal):
    """The request uses a name that a setting forbids to producers."""

    status = 400

    def __init__(self, what: str, name: str, setting: str) -> None:
        super().__init__(f"The {what} '{name}' is not allowed here: {setting} does not match it.")


class WorkPoolNotFound(Refusal):
    """No work pool or work queue of that name (``WorkerLookups``)."""

    status = 404


class DeploymentNotFound(Refusal):
    """No such deployment."""

    status = 404

    def __init__(self, what: str) -> None:
        super().__init__(what, {"detail": "Deployment not found"})


class FlowRunNotFound(Refusal):
    """No such run."""

    status = 404

    def __init__(self, run_id: Any) -> None:
        super().__init__(f"There is no flow run '{run_id}'.", {"detail": "Flow run not found"})


class StatesNotTold(Refusal):
    """The worker publishes no states, and reads no runs for clients that wait for them."""

    status = 400

    def __init__(self) -> None:
        super().__init__(STATES_NOT_TOLD)


class BlockNotFound(Refusal):
    """A default of a work pool's base job template refers to a block document that is missing."""

    status = 404

    def __init__(self, which: str) -> None:
        line = f"The work pool's base job template refers to the block document {which}, which is not there."
        super().__init__(line, {"detail": "Block not found."})


class HydrationRefused(Refusal):
    """A parameter of a ``__prefect_kind`` can't be turned into its value (``HydrationError``)."""

    status = 400

    def __init__(self, why: str) -> None:
        super().__init__(f"Error hydrating flow run parameters: {why}")


class NoWorkPool(Refusal):
    """The request names a work queue, but its deployment has no work pool."""

    status = 400

    def __init__(self, queue: str, deployment_id: Any) -> None:
        super().__init__(
            f"Cannot create flow run in work queue {queue} because deployment {deployment_id} is not "
            "associated with a work pool. Please remove work_pool_name and try again."
        )


class ParametersRefused(Refusal):
    """The parameters don't fit the deployment's schema, or there is no schema."""

    status = 409


class SchemaRefused(Refusal):
    """The schema of a deployment or of a work pool is invalid or endlessly recursive."""

    status = 422


class JobVariablesRefused(Refusal):
    """Job variables don't fit the work pool's base job template
    (``validate_job_variables_for_deployment_flow_run``).
    """

    status = 422


class CheckTooCostly(Refusal):
    """A check takes more time or memory than one request may cost. Prefect has no such limit."""

    status = 422

    def __init__(self, what: str, why: str) -> None:
        super().__init__(f"Error creating flow run: {what} can't be checked: {why}.")


class IntegrityConflict(Refusal):
    """A row that the request refers to does not exist (``integrity_exception_handler``)."""

    status = 409

    def __init__(self, what: str = "") -> None:
        detail = (
            "Data integrity conflict. This usually means a unique or foreign key constraint was violated. "
            "See server logs for details."
        )
        super().__init__(what or detail, {"detail": detail})


class BodyTooLarge(Refusal):
    """The body is over the worker's limit."""

    status = 413

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(f"The request body has {size:,} bytes; the limit is {limit:,} bytes.")


class UnsupportedMediaType(Refusal):
    """The message declares that its body is not plain JSON."""

    status = 415


class ValidationRefused(Refusal):
    """The endpoint does not accept the body or a header (``validation_exception_handler``).

    Args:
        errors: pydantic's errors, with ``loc`` beginning with ``body`` or ``header``.
        request_body: the parsed body, or its text if it could not be parsed.
    """

    status = 422

    def __init__(self, errors: list[dict[str, Any]], request_body: Any) -> None:
        first = errors[0]
        where = ".".join(str(part) for part in first["loc"])
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        super().__init__(f"{where}: {first['msg']}{more}", _invalid(errors, request_body))


class Unprocessable(Refusal):
    """A request that can't be stored, for a reason without its own rule. The log has the error."""

    status = 422

    def __init__(self, line: str = "This request cannot be processed.", *place: str) -> None:
        error = {"type": "value_error", "loc": ["body", *place], "msg": line, "input": None}
        super().__init__(line, _invalid([error], None))


class UnusableInPrefect(Unprocessable):
    """A run that Prefect's server could not read, list, hand out, move on or delete.

    Args:
        why: the reason in a sentence.
        place: the path to the field that is the cause.
    """

    def __init__(self, why: str, *place: str) -> None:
        super().__init__(f"{'.'.join(place)}: {why}", *place)


class ParametersTooLarge(Refusal):
    """The parameters are too large once workspace variables are filled in. Prefect measures them
    only before that.

    Args:
        limit: ``WORKER_MAX_PARAMETER_SIZE`` plus the size of the deployment's parameters, in bytes.
    """

    status = 422

    def __init__(self, limit: int) -> None:
        super().__init__(
            f"Flow run parameters must be less than {limit:,} bytes with the values of their variables."
        )


def encode_error(refusal: Refusal, max_bytes: int) -> bytes:
    """The error's body as JSON. A body that is too large leaves out the wrong values, then
    everything but the reason.
    """
    body = dumps(refusal.body)
    if len(body) > max_bytes and "exception_detail" in refusal.body:
        errors = [{**error, "input": None} for error in refusal.body["exception_detail"]]
        body = dumps(refusal.body | {"exception_detail": errors})
    if len(body) <= max_bytes:
        return body
    reason = f"{refusal.line} (the request is not shown, as the answer would be too large)"
    return dumps(Unprocessable(reason).body)


def _invalid(errors: list[dict[str, Any]], request_body: Any) -> dict[str, Any]:
    return {
        "exception_message": "Invalid request received.",
        "exception_detail": errors,
        "request_body": request_body,
    }


def _one_line(text: str) -> str:
    """The text as one printable line of at most :data:`MAX_LINE` characters."""
    line = printable(" ".join(text[: 2 * MAX_LINE].split()))
    return line if len(line) <= MAX_LINE else f"{line[: MAX_LINE - 1]}…"
