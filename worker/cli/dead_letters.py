"""``dead-letters``: shows, replays and purges refused requests."""

import sys
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Annotated

import typer

from worker.cli import letters_shown as shown
from worker.cli.letter_options import (
    All,
    Cause,
    Deployment,
    Error,
    Flow,
    Ids,
    Json,
    Key,
    Since,
    Status,
    Yes,
    are_ids,
    check_selects,
    selection_of,
)
from worker.cli.options import AmqpUrl, Queue, confirm, err, out, progress_bar, run_async

if TYPE_CHECKING:
    from worker.operate.dead_letters import DeadLetters
    from worker.operate.editing import Change, Checking
    from worker.operate.letter import Letter, Summary
    from worker.operate.picked import Picked
    from worker.operate.selection import Selection
    from worker.settings import Settings

dead_letters_app = typer.Typer(
    help="Refused requests: look at them, send them again, throw them away.", no_args_is_help=True
)


@dead_letters_app.command("list")
def list_letters(
    letters: Annotated[
        bool, typer.Option("--letters", metavar="", help="Single letters, the newest first, not causes.")
    ] = False,
    limit: Annotated[int, typer.Option(min=1, help="With --letters: most letters to list.")] = 50,
    cause: Cause = None,
    status: Status = None,
    error: Error = None,
    since: Since = None,
    key: Key = None,
    flow: Flow = None,
    deployment: Deployment = None,
    json_output: Json = False,
    amqp_url: AmqpUrl = None,
    queue: Queue = None,
) -> None:
    """List the dead letters by cause: their number, times, three examples. Changes nothing.

    A cause is a status and a reason. Its id stays the same.
    """
    from collections import deque

    from worker.operate.cause_groups import Causes
    from worker.settings import load_settings

    settings = load_settings(amqp_url=amqp_url, queue=queue)
    selection = selection_of(settings, None, cause, status, error, since, key, flow, deployment)
    causes, newest = Causes(), deque["Summary"](maxlen=limit)
    total = matching = 0

    async def look() -> None:
        nonlocal total, matching
        with progress_bar() as progress:
            async with _open(settings) as opened:
                bar = progress.add_task("looking", total=await opened.count())
                async for letter in opened.look(lambda count: progress.advance(bar, count)):
                    total += 1
                    if not selection.matches(letter):
                        continue
                    matching += 1
                    if letters:
                        newest.append(letter.summary())
                    else:
                        causes.add(letter)
                shown.undeliverable(opened)

    run_async(look())
    if letters:
        shown.letters(reversed(newest), matching, total, as_json=json_output)
    else:
        shown.causes(causes.groups(), matching, total, as_json=json_output)


@dead_letters_app.command()
def show(
    letter_id: Annotated[
        str, typer.Argument(metavar="ID", help="An id as 'list' shows it. Its first digits are enough.")
    ],
    json_output: Annotated[
        bool, typer.Option("--json", metavar="", help="Print JSON: properties, headers and body.")
    ] = False,
    amqp_url: AmqpUrl = None,
    queue: Queue = None,
) -> None:
    """Show a whole dead letter, with its reason and its remedy."""
    from worker.operate.explaining import explain
    from worker.settings import load_settings

    are_ids([letter_id])
    settings = load_settings(amqp_url=amqp_url, queue=queue)

    async def find() -> "Letter | None":
        found: Letter | None = None
        async with _open(settings) as opened:
            async for each in opened.look():
                if found is None and each.id.startswith(letter_id):
                    found = each
            shown.undeliverable(opened)
        return found

    letter = run_async(find())
    if letter is None:
        raise typer.BadParameter(f"no dead letter has the id {letter_id}", param_hint="ID")
    if json_output:
        shown.as_json(letter)
    else:
        shown.page(letter, explain(letter, _checking(settings)))


@dead_letters_app.command()
def replay(
    ids: Ids = None,
    every: All = False,
    cause: Cause = None,
    status: Status = None,
    error: Error = None,
    since: Since = None,
    key: Key = None,
    flow: Flow = None,
    deployment: Deployment = None,
    to: Annotated[
        str | None, typer.Option(metavar="QUEUE", help="Send them to this queue, not to the request queue.")
    ] = None,
    edit: Annotated[
        bool, typer.Option("--edit", metavar="", help="Edit the body of one letter first, in $EDITOR.")
    ] = False,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="PATH=VALUE",
            help="Set a field of each body: parameters.order=4711, say. The value is JSON, or text. May be "
            "given several times.",
        ),
    ] = None,
    unset: Annotated[
        list[str] | None, typer.Option("--unset", metavar="PATH", help="Remove a field of each body.")
    ] = None,
    wait: Annotated[
        bool,
        typer.Option(
            "--wait", metavar="", help="Wait, and count letters refused again: exit code 1 if there are any."
        ),
    ] = False,
    yes: Yes = False,
    amqp_url: AmqpUrl = None,
    queue: Queue = None,
) -> None:
    """Send dead letters to the request queue again. Tells their number. Asks on a terminal.

    It is safe to interrupt and to repeat this: each request makes one run. Only a request with
    neither an idempotency key nor a message id makes a new run each time. Changed requests are
    checked as a worker does. If it would refuse one, nothing is sent.
    """
    from worker.operate.dead_letters import REFUSED_WITHIN
    from worker.settings import load_settings

    settings = load_settings(amqp_url=amqp_url, queue=queue)
    selection = selection_of(settings, ids, cause, status, error, since, key, flow, deployment)
    check_selects(selection, every)
    if to is not None and wait:
        raise typer.BadParameter("--wait needs the request queue: leave out --to")
    if to == settings.queue_names.dead_letter_queue:
        raise typer.BadParameter(f"'{to}' is the queue of the dead letters", param_hint="--to")
    change = _changes(set_, unset)
    if edit and change is not None:
        raise typer.BadParameter("--edit opens the whole body: leave out --set and --unset")
    refused: list[Summary] = []

    async def send() -> int:
        nonlocal change
        async with _open(settings) as letters:
            picked = await _pick(letters, selection, keep=True)
            shown.undeliverable(letters)
            if edit and picked:
                change = await _edited(letters, picked, _checking(settings))
                if change is None:
                    out.print("It was not changed.")
                    picked = []
            if change is not None:
                await letters.check(picked, change, _checking(settings))
            where = f"of {settings.queue} " + ("again" if to is None else f"to {to}")
            if picked and not yes and sys.stdin.isatty():
                await _agree(f"Send {_number(len(picked))} {where}?")
            elif picked:
                err.print(f"Sending {_number(len(picked))} {where}.", highlight=False, markup=False)
            with progress_bar() as progress:
                bar = progress.add_task("sending again", total=len(picked))
                count = await letters.replay(
                    picked, lambda count: progress.advance(bar, count), to=to, change=change
                )
            out.print(f"{count} sent again.", highlight=False)
            if wait:
                refused.extend(await letters.refused_again())
            return count

    count = run_async(send())
    if wait:
        served = count - len(refused)
        out.print(f"{served} served, {len(refused)} refused again.", highlight=False)
        if served:
            out.print(
                f"(Served: not refused again within {REFUSED_WITHIN:g} s after the request queue was empty.)",
                highlight=False,
            )
        for letter in refused:
            shown.in_two_lines(letter)
    if refused:
        raise typer.Exit(1)


@dead_letters_app.command()
def purge(
    ids: Ids = None,
    every: All = False,
    cause: Cause = None,
    status: Status = None,
    error: Error = None,
    since: Since = None,
    key: Key = None,
    flow: Flow = None,
    deployment: Deployment = None,
    undeliverable: Annotated[
        bool,
        typer.Option(
            "--undeliverable", metavar="", help="Letters that the broker can't deliver (see 'list')."
        ),
    ] = False,
    yes: Yes = False,
    amqp_url: AmqpUrl = None,
    queue: Queue = None,
) -> None:
    """Delete dead letters for good. Shows their number, and asks.

    --all also deletes letters that the broker can't deliver.
    """
    from worker.settings import load_settings

    settings = load_settings(amqp_url=amqp_url, queue=queue)
    selection = selection_of(settings, ids, cause, status, error, since, key, flow, deployment)
    alone = undeliverable and selection.selects_all and not every
    if not alone:
        check_selects(selection, every)
    # Their content is unknown: only --all or --undeliverable deletes them.
    undeliverable = undeliverable or (every and selection.selects_all)

    async def throw_away() -> int | None:
        async with _open(settings) as letters:
            picked = await _pick(letters, None if alone else selection, keep=False)
            if not undeliverable:
                shown.undeliverable(letters)
            number = len(picked) + undeliverable * len(letters.undeliverable)
            if not number and not yes:
                return None
            if not yes:
                await _agree(f"Throw {_number(number)} of {settings.queue} away?")
            elif number:
                err.print(
                    f"Throwing {_number(number)} of {settings.queue} away.", highlight=False, markup=False
                )
            with progress_bar() as progress:
                bar = progress.add_task("throwing away", total=number)
                return await letters.purge(
                    picked, lambda count: progress.advance(bar, count), undeliverable=undeliverable
                )

    count = run_async(throw_away())
    out.print("No dead letter matches." if count is None else f"{count} thrown away.", highlight=False)


def _open(settings: "Settings") -> AbstractAsyncContextManager["DeadLetters"]:
    from worker.operate.dead_letters import open_dead_letters

    return open_dead_letters(settings.amqp_url, settings.queue_names, settings.fleet_logins)


def _checking(settings: "Settings") -> "Checking":
    from worker.operate.editing import Checking

    return Checking(settings.max_body_bytes, settings.max_parameter_size, settings.plain_messages)


def _changes(set_: list[str] | None, unset: list[str] | None) -> "Change | None":
    """The change of ``--set`` and ``--unset``."""
    from worker.operate.editing import Setting, changing

    try:
        settings = [*map(Setting.of, set_ or ()), *map(Setting.removing, unset or ())]
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    return changing(settings) if settings else None


async def _edited(letters: "DeadLetters", picked: "list[Picked]", checking: "Checking") -> "Change | None":
    """The change that a person makes in an editor. None: nothing was changed."""
    from worker.cli.letter_editor import edited
    from worker.operate.editing import ChangeRefused, pretty

    if len({each.id for each in picked}) > 1:
        raise typer.BadParameter(
            f"--edit takes one letter, and {len(picked):,} match: name its id, or use --set"
        )

    async def check(new: bytes) -> str | None:
        try:
            await letters.check(picked[:1], lambda _: new, checking)
        except ChangeRefused as refused:
            return refused.reason
        return None

    new = await edited(pretty(letters.read(picked[0]).body), check)
    return None if new is None else lambda _: new


async def _pick(letters: "DeadLetters", selection: "Selection | None", *, keep: bool) -> "list[Picked]":
    with progress_bar() as progress:
        bar = progress.add_task("looking", total=await letters.count())
        return await letters.pick(selection, lambda count: progress.advance(bar, count), keep=keep)


async def _agree(question: str) -> None:
    """Ask, and end the command unless the answer is yes."""
    answer = await confirm(question)
    if answer is None:
        raise typer.BadParameter("nobody answers on standard input: add --yes")
    if not answer:
        raise typer.Abort


def _number(count: int) -> str:
    return f"{count:,} dead letter" + ("" if count == 1 else "s")
