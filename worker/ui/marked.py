"""A body in lines, with those marked that the error is about. Knows no queue."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from worker.contract.printable import printable, printable_json
from worker.operate.explaining import Problem

# Lines to show, besides those that are wrong. A browser shows these at once. The form has all.
MAX_LINES = 3000
# A line of a body that is no JSON, in characters.
MAX_LINE = 10_000
# The shortest text that marks a line by being quoted in the reason.
_QUOTED = 4

Path = tuple[str, ...]
Marks = Mapping[Path, str]


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a body.

    Attributes:
        error: the fault in it. None: it has none.
        missing: it is not in the body, and should be.
    """

    text: str
    error: str | None = None
    missing: bool = False


@dataclass(frozen=True, slots=True)
class Marked:
    """A body for people.

    Attributes:
        json: whether it is JSON.
        left_out: lines that are not shown.
        whole: the text as it is edited. None: it can't be edited as text.
    """

    lines: Sequence[Line]
    json: bool
    left_out: int
    whole: str | None


def marked(body: bytes, reason: str, problems: Sequence[Problem] = ()) -> Marked:
    """A body with its marks.

    Args:
        reason: why it was refused, in a line.
        problems: what a worker would find wrong now.
    """
    try:
        content = json.loads(body)
        lines, left_out = _shown(_lines(content, marks_of(content, reason, problems)))
        whole = printable_json(json.dumps(content, indent=2, ensure_ascii=False))
        return Marked(lines, True, left_out, whole)
    except (ValueError, RecursionError):
        return _of_text(body, problems)


def _shown(lines: Iterable[Line]) -> tuple[list[Line], int]:
    """The first lines and all that are wrong, and the number of the others."""
    shown, left_out = [], 0
    for number, line in enumerate(lines):
        if number < MAX_LINES or line.error is not None:
            shown.append(line)
        else:
            left_out += 1
    return shown, left_out


def marks_of(content: Any, reason: str, problems: Sequence[Problem]) -> Marks:
    """The faults, by the path to the value."""
    found: dict[Path, str] = {}
    for each in problems:
        where, *path = [str(part) for part in each.place] or [""]
        if where == "body":
            found.setdefault(tuple(path), each.reason)
    if found:
        return found
    # The worker's words: body.parameters.order: …, or tags: …
    field, _, why = reason.partition(": ")
    named = tuple(part for part in field.split(".") if part != "body")
    if why and named and isinstance(content, dict) and named[0] in content:
        return {named: why}
    return dict.fromkeys(_quoted(content, reason), reason)


def _quoted(content: Any, reason: str, path: Path = ()) -> Iterator[Path]:
    """The paths of texts that the reason quotes, such as the name of a missing row."""
    if isinstance(content, str):
        if len(content) >= _QUOTED and re.search(rf"(?<!\w){re.escape(content[:500])}(?!\w)", reason):
            yield path
    elif isinstance(content, (dict, list)) and len(path) < 3:
        entries = content.items() if isinstance(content, dict) else enumerate(content)
        for name, value in entries:
            yield from _quoted(value, reason, (*path, str(name)))


def _lines(content: Any, marks: Marks) -> Iterator[Line]:
    placed: set[Path] = set()

    def of(value: Any, path: Path, begin: str, end: str) -> Iterator[Line]:
        placed.add(path)
        error = marks.get(path)
        indent = "  " * (len(path) + 1)
        if isinstance(value, dict):
            missing = [each for each in marks if len(each) == len(path) + 1 and each[:-1] == path]
            missing = [each for each in missing if each[-1] not in value]
            entries = [(name, f"{_json(name)}: ") for name in value]
            yield from within(value, path, begin, end, "{}", entries, error, missing, indent)
        elif isinstance(value, list):
            entries = [(str(place), "") for place in range(len(value))]
            yield from within(value, path, begin, end, "[]", entries, error, [], indent)
        else:
            yield Line(f"{begin}{_json(value)}{end}", error)

    def within(
        value: Any,
        path: Path,
        begin: str,
        end: str,
        brackets: str,
        entries: list[tuple[str, str]],
        error: str | None,
        missing: list[Path],
        indent: str,
    ) -> Iterator[Line]:
        if not entries and not missing:
            yield Line(f"{begin}{brackets}{end}", error)
            return
        yield Line(f"{begin}{brackets[0]}", error)
        for number, (name, label) in enumerate(entries):
            inner = value[name] if isinstance(value, dict) else value[int(name)]
            comma = "," if number < len(entries) - 1 else ""
            yield from of(inner, (*path, name), f"{indent}{label}", comma)
        for each in missing:
            placed.add(each)
            yield Line(f"{indent}{_json(each[-1])}: ", marks[each], missing=True)
        yield Line(f"{indent[2:]}{brackets[1]}{end}")

    yield from of(content, (), "", "")
    # Errors whose place is deeper than the value, such as a member of a union.
    for path, why in marks.items():
        if path not in placed:
            yield Line("", f"{'.'.join(path)}: {why}", missing=True)


def _json(value: Any) -> str:
    return printable_json(json.dumps(value, ensure_ascii=False))


def _of_text(body: bytes, problems: Sequence[Problem]) -> Marked:
    try:
        text = body.decode()
        whole = text if all(each.isprintable() or each in "\n\r\t" for each in text) else None
    except UnicodeDecodeError:
        text, whole = repr(body)[2:-1], None
    # A body that is no JSON has the place of its first character that is wrong.
    at, why = next(((each.place[1], each.reason) for each in problems if len(each.place) == 2), (None, None))
    lines, begin = [], 0
    split = text.split("\n")
    for line in split[:MAX_LINES]:
        here = whole is not None and isinstance(at, int) and begin <= at <= begin + len(line)
        lines.append(Line(printable(line[:MAX_LINE], "\t"), why if here else None))
        begin += len(line) + 1
    return Marked(lines, False, max(len(split) - MAX_LINES, 0), whole)
