"""Prints dead letters: causes, lists, and whole ones."""

import base64
import json
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from rich.padding import Padding

from worker.cli.options import err, escape, out, print_json
from worker.contract.printable import printable_json

if TYPE_CHECKING:
    from worker.operate.cause_groups import CauseGroup
    from worker.operate.dead_letters import DeadLetters
    from worker.operate.explaining import Explanation
    from worker.operate.letter import Letter, Summary

_PROPERTIES = (
    "message_id correlation_id reply_to content_type content_encoding type app_id user_id timestamp priority "
    "expiration"
)


def causes(groups: "Sequence[CauseGroup]", matching: int, total: int, *, as_json: bool) -> None:
    """Print the letters by cause."""
    for group in groups:
        if as_json:
            _json_line(_cause(group))
            continue
        first, last = (_second(at.isoformat() if at else None) for at in (group.first, group.last))
        when = first if first == last else f"{first} to {last}"
        number = "1 letter" if group.count == 1 else f"{group.count:,} letters"
        out.print(f"[bold]{escape(group.cause.id)}[/]  {number}  {when}", highlight=False, soft_wrap=True)
        out.print(Padding(escape(group.cause.reason), (0, 0, 0, 4), expand=False), highlight=False)
        out.print(f"    such as {'  '.join(group.examples)}", highlight=False, soft_wrap=True)
    if not as_json and _any(matching, total):
        number = "1 cause" if len(groups) == 1 else f"{len(groups):,} causes"
        out.print(
            f"{matching:,} of {total:,} dead letters, {number}. 'show ID' shows one and what to do, "
            "'list --letters --cause CAUSE' lists those of a cause, 'replay --cause CAUSE' sends them again.",
            highlight=False,
        )


def letters(summaries: "Iterable[Summary]", matching: int, total: int, *, as_json: bool) -> None:
    """Print single letters."""
    count = 0
    for letter in summaries:
        count += 1
        if as_json:
            _json_line(_summary(letter))
        else:
            in_two_lines(letter)
    if not as_json and _any(matching, total):
        of = "" if matching == total else f" that match, {total:,} in all"
        out.print(
            f"{count:,} of {matching:,}{of}; 'show ID' shows one, 'replay ID' sends it again.",
            highlight=False,
        )


def in_two_lines(letter: "Summary") -> None:
    """Print a letter of a list."""
    # To the second. 'show' and the JSON have the whole time.
    about = (_second(letter.failed_at), letter.cause, f"{letter.size} bytes", letter.key or "")
    head = "  ".join(escape(str(value)) for value in about)
    out.print(f"[bold]{letter.id}[/]  {head}", highlight=False)
    out.print(Padding(escape(letter.error), (0, 0, 0, 4), expand=False), highlight=False)


def as_json(letter: "Letter") -> None:
    """Print a whole letter as JSON."""
    message = letter.delivery.message
    whole = {
        **_summary(letter.summary()),
        "properties": properties(letter),
        "headers": message.headers,
        "body": _body(message.body),
    }
    poorer = {"headers": str(message.headers), "body": _plain(message.body)}
    _print_json(lambda: _json(whole), lambda: _json({**whole, **poorer}))


def page(letter: "Letter", explanation: "Explanation") -> None:
    """Print a letter for people: why it is there, what to do, and its content."""
    message = letter.delivery.message
    head = "  ".join((letter.cause.id, _second(letter.failed_at), f"{letter.delivery.size:,} bytes"))
    out.print(f"[bold]{letter.id}[/]  {escape(head)}", highlight=False)
    _paragraph(None, letter.error)
    _paragraph("What it means", _sentence(explanation.means))
    _paragraph("What to do", _sentence(explanation.remedy))
    if explanation.problems:
        lines = (_problem(each.place, each.reason) for each in explanation.problems)
        _paragraph("What a worker would refuse now", *lines)
    elif explanation.problems is not None:
        _paragraph("Now", "A worker finds nothing wrong in it before it looks into its database.")
    _paragraph("Properties", *(f"{name}: {value}" for name, value in properties(letter).items()))
    _paragraph("Headers", *(f"{name}: {_short(value)}" for name, value in message.headers.items()))
    out.print("\n[bold]Body[/]", highlight=False)
    body = _body(message.body)
    if isinstance(body, str):
        out.print(escape(body, keep="\n"), highlight=False, soft_wrap=True)
    else:
        _print_json(lambda: _json(body), lambda: _json(_plain(message.body)))
    commands = {
        f"replay {letter.id} --wait": "send it again",
        f"replay {letter.id} --edit": "change it, then send it",
        f"replay --cause {letter.cause.id}": "send all of its cause again",
        f"purge {letter.id}": "throw it away",
    }
    _paragraph(
        "Commands", *(f"flow-run-worker dead-letters {each:27} {does}" for each, does in commands.items())
    )


def properties(letter: "Letter") -> dict[str, Any]:
    """The properties that a letter has."""
    message = letter.delivery.message
    return {name: value for name in _PROPERTIES.split() if (value := getattr(message, name)) is not None}


def undeliverable(opened: "DeadLetters") -> None:
    """Print which letters were passed over."""
    for each in opened.undeliverable:
        err.print(
            f"[yellow]passed over[/]: letter {each.place} from the oldest on, which this broker can't "
            "deliver: it fails with INTERNAL_ERROR, as RabbitMQ 3 does over a message of AMQP 1.0 whose "
            "correlation id is a number. 'purge --undeliverable' throws such ones away.",
            highlight=False,
            soft_wrap=True,
        )


def _paragraph(title: str | None, *lines: str) -> None:
    if title is not None and lines:
        out.print(f"\n[bold]{title}[/]", highlight=False)
    for line in lines:
        out.print(Padding(escape(line), (0, 0, 0, 2), expand=False), highlight=False)


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _problem(place: Sequence[str | int], reason: str) -> str:
    return f"{'.'.join(map(str, place))}: {reason}" if place else reason


def _short(value: Any) -> str:
    try:
        return value if isinstance(value, str) else json.dumps(value, default=_plain, ensure_ascii=False)
    except RecursionError:
        return str(value)


def _print_json(text: Callable[[], str], poorer: Callable[[], str]) -> None:
    """Print JSON. A value that is nested too deep for it is printed as text."""
    try:
        shown = text()
    except RecursionError:
        shown = poorer()
    print_json(shown)


def _any(matching: int, total: int) -> bool:
    """Say so if there are no letters, or none that match."""
    if not matching:
        out.print("There are no dead letters." if not total else "No dead letter matches.")
    return bool(matching)


def _second(at: str | None) -> str:
    return (at or "no time")[:19].replace("T", " ")


def _cause(group: "CauseGroup") -> dict[str, Any]:
    return {
        "cause": group.cause.id,
        "status": group.cause.status,
        "reason": group.cause.reason,
        "count": group.count,
        "bytes": group.bytes,
        "first": group.first.isoformat() if group.first else None,
        "last": group.last.isoformat() if group.last else None,
        "examples": list(group.examples),
    }


def _summary(letter: "Summary") -> dict[str, Any]:
    return {
        "id": letter.id,
        "failed_at": letter.failed_at,
        "status": letter.status,
        "cause": letter.cause,
        "error": letter.error,
        "idempotency_key": letter.key,
        "message_id": letter.message_id,
        "bytes": letter.size,
    }


def _json_line(value: dict[str, Any]) -> None:
    from worker.contract.encoding import dumps_text

    print(printable_json(dumps_text(value)))


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
