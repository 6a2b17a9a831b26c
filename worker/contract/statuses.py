"""The statuses that a worker answers: what each means, and what to do. The contract's page has this
table, and ``dead-letters show`` its rows.
"""

import re

from .immutable import immutable


@immutable
class Meaning:
    """A status for one kind of reasons.

    Attributes:
        status: the HTTP status.
        means: in Markdown, as is ``remedy``.
        remedy: what to do. Empty if there is nothing to do.
        reason: a regular expression to find in the reason (``x-error``). Empty: all other reasons.
    """

    status: int
    means: str
    remedy: str = ""
    reason: str = ""


MEANINGS = (
    Meaning(201, "the run was created"),
    Meaning(200, "a run with this key existed, or a run was read; the record shows its current state"),
    Meaning(
        400,
        "a parameter's `__prefect_kind` can't be turned into a value",
        "mend the parameter",
        "^Error hydrating",
    ),
    Meaning(
        400,
        "a queue is named for a deployment without a pool",
        "leave out `work_queue_name`, or give the deployment a work pool",
        "^Cannot create flow run in work queue",
    ),
    Meaning(
        400,
        "a setting of the worker does not allow this name, or replies to this queue",
        "use another name, or change the setting: the one that `x-error` names, or `WORKER_REPLY_TO_PATTERN`",
        "is not allowed here|^Replies are not sent",
    ),
    Meaning(
        400, "a run is to be read where no states are told", "set `WORKER_STATES`", "states are not told"
    ),
    Meaning(
        400,
        "the API version is wrong, or the body is not text or nested deeper than 500 levels",
        "mend the request",
    ),
    Meaning(
        404,
        "the worker may not make the work queue",
        "make it, or GRANT what `x-error` names, then send the request again",
        "the worker may not make it",
    ),
    Meaning(
        404,
        "no deployment, work pool or work queue has that name, or the run to be read does not exist",
        "create it, or mend the name",
    ),
    Meaning(
        409,
        "parameters don't fit the deployment's schema",
        "mend them; `x-error` says which and why",
        "^Error (creating flow run|updating deployment):",
    ),
    Meaning(
        409,
        "the database takes the run's row away, or another run is in its way",
        "look at the triggers and constraints of the database",
        "a trigger takes its row away|unique|duplicate",
    ),
    Meaning(
        409,
        "a row that the request refers to does not exist: a flow, a parent task run, an infrastructure "
        "document",
        "create what `x-error` names, such as the flow, then send the request again with the same key, or "
        "[replay](../OPERATIONS.md#dead-letters) its dead letter",
    ),
    Meaning(
        413,
        "the body is over `WORKER_MAX_BODY_BYTES` (1 MiB)",
        "send less, or store the data elsewhere and send their address",
    ),
    Meaning(415, "the content type or encoding is not plain JSON", "send `application/json`"),
    Meaning(
        422,
        "the request names a deployment, and its message has no type",
        "set the message's property `type` to `create_flow_run_from_deployment`",
        "^A request for a run of a deployment needs the type",
    ),
    Meaning(
        422,
        "a check takes too much time or memory, or too many checks wait",
        "send it again if checks wait; otherwise make the schema, the parameters or the template simpler: "
        "`x-error` names which",
        "can't be checked:",
    ),
    Meaning(
        422,
        "job variables don't fit the pool's template, a schema is unusable, or the values of variables make "
        "the parameters too large",
        "mend what `x-error` names",
        "^Error creating flow run:|^(?!body|header).*schema|^Flow run parameters must be less",
    ),
    Meaning(
        422,
        "the database can't store the run, or a row that the run needs can't be used",
        "mend the row or the right that `x-error` names, then send the request again",
        "^The database cannot store|can't be used|can't be shown",
    ),
    Meaning(
        422,
        "Prefect [could not handle](prefect.md#runs-that-are-not-made) the run: JSON too deep, too many or "
        "too long tags, a false result",
        "mend the field that `x-error` names",
        r"^(?!body|header)[a-z_.]+: ",
    ),
    Meaning(
        422,
        "a field is wrong; at most 100 errors are listed",
        "mend it; `exception_detail` has the places",
    ),
)


def meaning_of(status: int | None, reason: str) -> Meaning | None:
    """The meaning of a status with this reason. None: no worker answers it."""
    return next((each for each in MEANINGS if each.status == status and re.search(each.reason, reason)), None)


def plain(markdown: str) -> str:
    """A text without the marks of Markdown: for a terminal, and for other pages."""
    return re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", markdown).replace("`", "")


def table() -> str:
    """The table of the contract's page, in Markdown."""
    rows = (f"| {each.status} | {each.means} | {each.remedy}{' ' * bool(each.remedy)}|" for each in MEANINGS)
    return "\n".join(("| status | means | what to do |", "| --- | --- | --- |", *rows))
