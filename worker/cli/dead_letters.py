"""``dead-letters``: shows, replays and purges refused requests."""

import base64
import json
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.padding import Padding

from worker.cli.options import AmqpUrl, Queue, err, escape, out, print_json, progress_bar, run_async
from worker.contract.printable import printable_json

if TYPE_CHECKING:
    from worker.operate.dead_letters import DeadLetters, Match
    from worker.operate.letter import Letter
    from worker.settings import Settings

dead_letters_app = typer.Typer(
    help="Refused requests: look at them, send them again, throw them away.", no_args_is_help=True
)

_SHOWN = (
    "message_id correlation_id reply_to content_type content_encoding type app_id user_id timestamp priority "
    "expiration"
)


def _are_ids(ids: list[str] | None) -> list[str] | None:
    if ids and not all(ids):  # each id begins with an empty text
        raise typer.BadParameter("an id must not be empty")
    return ids


Ids = Annotated[
    list[str] | None,
    typer.Argument(
        help="Ids as 'list' shows them. Their first digits are enough. If an id is unknown, nothing is done.",
        callback=_are_ids,
    ),
]
Status = Annotated[int | None, typer.Option(help="Only letters with this status, such as 422.")]
Error = Annotated[str | None, typer.Option(help="Only letters with this text in their error.")]
All = Annotated[bool, typer.Option("--all", metavar="", help="All letters.")]


@dead_letters_app.command("list")
def list_letters(
    limit: Annotated[int, typer.Option(min=1, help="Most letters to list. The oldest come first.")] = 50,
    status: Status = None,
    error: Error = None,
    json_output: Annotated[
        bool, typer.Option("--json", metavar="", help="Print JSON, one line a letter.")
    ] = False,
    amqp_url: AmqpUrl = None,
    queue: Queue = None,
) -> None:
    """List the dead letters: id, time, status, size, idempotency key, error. Changes nothing."""
    from worker.contract.encoding import dumps_text
    from worker.settings import load_settings

    settings = load_settings(amqp_url=amqp_url, queue=queue)
    total = 0

    async def look() -> list["Letter"]:
        nonlocal total
        async with _open(settings) as letters:
            total = await letters.count()
            matching: list[Letter] = []
            async for each in letters.look(total):
                if each.matches((), status, error):
                    matching.append(each)
                if len(matching) == limit:
                    break
            _tell_undeliverable(letters)
            return matching

    found = run_async(look())
    if json_output:
        for letter in found:
            print(printable_json(dumps_text(_summary(letter))))
        return
    if not total:
        out.print("There are no dead letters.")
        return
    for letter in found:
        _show_in_two_lines(letter)
    out.print(f"{len(found)} of {total}; 'show ID' shows one, 'replay ID' sends it again.", highlight=False)


@dead_letters_app.command()
def show(
    letter_id: Annotated[
        str, typer.Argument(metavar="ID", help="An id as 'list' shows it. Its first digits are enough.")
    ],
    amqp_url: AmqpUrl = None,
    queue: Queue = None,
) -> None:
    """Show a whole dead letter: properties, headers and body."""
    from worker.settings import load_settings

    _are_ids([letter_id])
    settings = load_settings(amqp_url=amqp_url, queue=queue)

    async def find() -> "Letter | None":
        async with _open(settings) as letters:
            async for each in letters.look(await letters.count()):
                if each.matches((letter_id,), None, None):
                    return each
            _tell_undeliverable(letters)
        return None

    letter = run_async(find())
    if letter is None:
        raise typer.BadParameter(f"no dead letter has the id {letter_id}", param_hint="ID")
    message = letter.delivery.message
    properties = {name: value for name in _SHOWN.split() if (value := getattr(message, name)) is not None}
    whole = {
        **_summary(letter),
        "properties": properties,
        "headers": message.headers,
        "body": _body(message.body),
    }
    try:
        text = _json(whole)
    except RecursionError:
        text = _json({**whole, "headers": str(message.headers), "body": _plain(message.body)})
    print_json(text)


@dead_letters_app.command()
def replay(
    ids: Ids = None,
    every: All = False,
    status: Status = None,
    error: Error = None,
    wait: Annotated[
        bool,
        typer.Option(
            "--wait", metavar="", help="Wait, and count letters refused again: exit code 1 if there are any."
        ),
    ] = False,
    amqp_url: AmqpUrl = None,
    queue: Queue = None,
) -> None:
    """Send dead letters to the request queue again.

    It is safe to interrupt and to repeat this: each request makes one run. Only a request with
    neither an idempotency key nor a message id makes a new run each time.
    """
    from worker.operate.dead_letters import REFUSED_WITHIN
    from worker.settings import load_settings

    settings = load_settings(amqp_url=amqp_url, queue=queue)
    match = _match(ids, every, status, error)
    refused: list[Letter] = []

    async def send(letters: "DeadLetters", progress: Any) -> int:
        count = await letters.replay(match, progress, ids=ids or ())
        out.print(f"{count} sent again.", highlight=False)
        if wait:
            refused.extend(await letters.refused_again())
        return count

    count = _with_progress(settings, "sending again", send)
    if wait:
        served = count - len(refused)
        out.print(f"{served} served, {len(refused)} refused again.", highlight=False)
        if served:
            out.print(
                f"(Served: not refused again within {REFUSED_WITHIN:g} s after the request queue was empty.)",
                highlight=False,
            )
        for letter in refused:
            _show_in_two_lines(letter)
    if refused:
        raise typer.Exit(1)


@dead_letters_app.command()
def purge(
    ids: Ids = None,
    every: All = False,
    status: Status = None,
    error: Error = None,
    undeliverable: Annotated[
        bool,
        typer.Option(
            "--undeliverable", metavar="", help="Letters that the broker can't deliver (see 'list')."
        ),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", metavar="", help="Don't ask.")] = False,
    amqp_url: AmqpUrl = None,
    queue: Queue = None,
) -> None:
    """Delete dead letters for good. Shows their number, and asks.

    --all also deletes letters that the broker can't deliver.
    """
    from worker.settings import load_settings

    settings = load_settings(amqp_url=amqp_url, queue=queue)
    match = _match(ids, every, status, error, undeliverable=undeliverable)
    # Their content is unknown: only --all or --undeliverable deletes them.
    undeliverable = undeliverable or (every and status is None and error is None)
    if not yes:

        async def matching() -> int:
            async with _open(settings) as letters:
                looked = [each async for each in letters.look(await letters.count())]
                letters.raise_for_unknown(ids or (), looked)
                return sum(map(match, looked)) + undeliverable * len(letters.undeliverable)

        letters_of = "dead letter" if (number := run_async(matching())) == 1 else "dead letters"
        if not number:
            out.print("No dead letter matches.")
            return
        typer.confirm(f"Throw {number} {letters_of} of {settings.queue} away?", abort=True)

    async def throw_away(letters: "DeadLetters", progress: Any) -> int:
        return await letters.purge(match, progress, ids=ids or (), undeliverable=undeliverable)

    count = _with_progress(settings, "throwing away", throw_away, tell=not undeliverable)
    out.print(f"{count} thrown away.", highlight=False)


def _open(settings: "Settings") -> AbstractAsyncContextManager["DeadLetters"]:
    from worker.operate.dead_letters import open_dead_letters

    return open_dead_letters(settings.amqp_url, settings.queue_names, settings.fleet_logins)


def _match(
    ids: list[str] | None, every: bool, status: int | None, error: str | None, *, undeliverable: bool = False
) -> "Match":
    if not (ids or every or status is not None or error is not None):
        if undeliverable:
            return lambda letter: False
        raise typer.BadParameter("name ids, --status, --error, or --all")
    return lambda letter: letter.matches(ids or (), status, error)


def _with_progress(settings: "Settings", doing: str, work: Any, *, tell: bool = True) -> int:
    async def run() -> int:
        with progress_bar() as progress:
            async with _open(settings) as letters:
                bar = progress.add_task(doing, total=await letters.count())
                done: int = await work(letters, lambda count: progress.advance(bar, count))
                if tell:
                    _tell_undeliverable(letters)
                return done

    return run_async(run())


def _tell_undeliverable(letters: "DeadLetters") -> None:
    for each in letters.undeliverable:
        err.print(
            f"[yellow]passed over[/]: letter {each.place} from the oldest on, which this broker can't "
            "deliver: it fails with INTERNAL_ERROR, as RabbitMQ 3 does over a message of AMQP 1.0 whose "
            "correlation id is a number. 'purge --undeliverable' throws such ones away.",
            highlight=False,
            soft_wrap=True,
        )


def _show_in_two_lines(letter: "Letter") -> None:
    # To the second. 'show' and the JSON have the whole time.
    failed_at = (letter.failed_at or "")[:19].replace("T", " ")
    head = (failed_at, letter.status or "-", f"{letter.delivery.size} bytes", letter.key or "")
    about = "  ".join(escape(str(value)) for value in head)
    out.print(f"[bold]{letter.id}[/]  {about}", highlight=False)
    out.print(Padding(escape(letter.error), (0, 0, 0, 4)), highlight=False)


def _summary(letter: "Letter") -> dict[str, Any]:
    return {
        "id": letter.id,
        "failed_at": letter.failed_at,
        "status": letter.status,
        "error": letter.error,
        "idempotency_key": letter.key,
        "message_id": letter.delivery.message.message_id,
        "bytes": letter.delivery.size,
    }


def _body(body: bytes) -> Any:
    from pydantic_core import from_json

    try:
        return from_json(body, allow_inf_nan=False)
    except ValueError:
        return _plain(body)


def _json(value: Any) -> str:
    return json.dumps(value, default=_plain, indent=2, ensure_ascii=False)


def _plain(value: Any) -> Any:
    if isinstance(value, (bytes, bytearray)):
        try:
            return bytes(value).decode()
        except UnicodeDecodeError:
            return {"base64": base64.b64encode(value).decode()}
    if isinstance(value, datetime):
        return value.isoformat()
    return str(value)
