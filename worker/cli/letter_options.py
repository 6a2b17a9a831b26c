"""The options of ``dead-letters`` that select letters."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from worker.cli.options import age

if TYPE_CHECKING:
    from worker.operate.selection import Selection
    from worker.settings import Settings


def are_ids(ids: list[str] | None) -> list[str] | None:
    if ids and not all(ids):  # each id begins with an empty text
        raise typer.BadParameter("an id must not be empty")
    return ids


def _since(text: str) -> datetime:
    if (ago := age(text)) is not None:
        return datetime.now(UTC) - ago
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"'{text}' is neither an age such as 90m, 2h or 3d nor a time") from None
    return at if at.tzinfo else at.replace(tzinfo=UTC)


Ids = Annotated[
    list[str] | None,
    typer.Argument(
        help="Ids as 'list' shows them. Their first digits are enough. If an id is unknown, nothing is done.",
        callback=are_ids,
    ),
]
Cause = Annotated[
    list[str] | None,
    typer.Option(metavar="CAUSE", help="Only this cause, such as 409-3fa2c1. May be given several times."),
]
Status = Annotated[int | None, typer.Option(help="Only letters with this status, such as 422.")]
Error = Annotated[str | None, typer.Option(help="Only letters with this text in their error.")]
Since = Annotated[
    datetime | None,
    typer.Option(
        parser=_since, metavar="WHEN", help="Only letters since then: 90m, 2h, 3d, or a time in UTC."
    ),
]
Key = Annotated[str | None, typer.Option(help="Only letters with this idempotency key.")]
Flow = Annotated[
    str | None, typer.Option(help="Only letters of this flow: its id, or its name beside a deployment's.")
]
Deployment = Annotated[str | None, typer.Option(help="Only letters of this deployment: its id, or its name.")]
All = Annotated[bool, typer.Option("--all", metavar="", help="All letters.")]
Json = Annotated[bool, typer.Option("--json", metavar="", help="Print JSON, one line for each.")]
Yes = Annotated[bool, typer.Option("--yes", metavar="", help="Don't ask.")]


def selection_of(
    settings: "Settings",
    ids: list[str] | None,
    causes: list[str] | None,
    status: int | None,
    error: str | None,
    since: datetime | None,
    key: str | None,
    flow: str | None,
    deployment: str | None,
) -> "Selection":
    """The letters of these options."""
    from worker.operate.selection import Selection

    return Selection(
        ids=tuple(ids or ()),
        causes=tuple(causes or ()),
        status=status,
        error=error,
        since=since,
        key=key,
        flow=flow,
        deployment=deployment,
        plain=settings.plain_messages,
    )


def check_selects(selection: "Selection", every: bool) -> None:
    """Refuse to act on all letters, unless that is asked for."""
    if selection.selects_all and not every:
        raise typer.BadParameter("name ids, a filter such as --cause or --status, or --all")
