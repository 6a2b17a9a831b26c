"""Changes the bodies of dead letters, and checks them as a worker does. Knows no queue."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from worker.contract.decode import decode
from worker.contract.errors import Refusal
from worker.contract.message import Message
from worker.contract.plain import PlainMessages

# Changes a body. Raises ValueError if it can't.
Change = Callable[[bytes], bytes]


class ChangeRefused(Exception):
    """A changed letter would be refused again. Nothing was sent.

    Attributes:
        reason: why, in one line.
    """

    def __init__(self, letter_id: str, reason: str) -> None:
        super().__init__(f"{letter_id}: {reason}; nothing was sent")
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Checking:
    """How a worker reads the requests of a queue; see :func:`worker.contract.decode.decode`."""

    max_body_bytes: int
    max_parameter_size: int
    plain: PlainMessages | None = None

    def refusal(self, message: Message) -> Refusal | None:
        """Why a worker would refuse a message before it looks into its database, if it would."""
        plain = self.plain if self.plain is not None and self.plain.have(message) else None
        try:
            decode(
                message,
                max_body_bytes=self.max_body_bytes,
                max_parameter_size=self.max_parameter_size,
                plain=plain,
            )
        except Refusal as refusal:
            return refusal
        return None

    def check(self, letter_id: str, message: Message) -> None:
        """Raise :class:`ChangeRefused` for a message that a worker would refuse."""
        if (refusal := self.refusal(message)) is not None:
            raise ChangeRefused(letter_id, f"a worker would refuse it: {refusal.status}: {refusal.line}")


@dataclass(frozen=True, slots=True)
class Setting:
    """A change to one field of a body.

    Attributes:
        path: names of fields, and places in lists.
        value: the new value.
        remove: remove the field instead.
    """

    path: Sequence[str]
    value: Any = None
    remove: bool = False

    @classmethod
    def of(cls, text: str) -> "Setting":
        """Read ``PATH=VALUE``, such as ``parameters.order=4711``. A value that is no JSON is text.

        Raises:
            ValueError: there is no path, or no ``=``.
        """
        path, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"'{text}' is not PATH=VALUE, such as parameters.order=4711")
        try:
            read = json.loads(value)
        except ValueError:
            read = value
        return cls(_path(path), read)

    @classmethod
    def removing(cls, path: str) -> "Setting":
        """Remove the field at a path.

        Raises:
            ValueError: it is no path.
        """
        return cls(_path(path), remove=True)

    def apply(self, content: Any) -> None:
        """Change a parsed body. Objects on the way are made.

        Raises:
            ValueError: the path leads through a value that has no fields.
        """
        *way, last = self.path
        for name in way:
            if isinstance(content, dict) and not self.remove:
                content = content.setdefault(name, {})
            else:
                content = _entry(content, name, self.path)
        if isinstance(content, dict) and not self.remove:
            content[last] = self.value
        else:
            _entry(content, last, self.path)
            key: Any = int(last) if isinstance(content, list) else last
            if self.remove:
                del content[key]
            else:
                content[key] = self.value


def changing(settings: Sequence[Setting]) -> Change:
    """The change of these settings, one after the other."""

    def change(body: bytes) -> bytes:
        try:
            content = json.loads(body)
        except (ValueError, RecursionError):
            raise ValueError("its body is no JSON: edit it") from None
        for setting in settings:
            setting.apply(content)
        return json.dumps(content, separators=(",", ":")).encode()

    return change


def pretty(body: bytes) -> bytes:
    """A body for an editor: JSON in lines. Anything else as it is."""
    try:
        return json.dumps(json.loads(body), indent=2, ensure_ascii=False).encode() + b"\n"
    except (ValueError, RecursionError):  # UnicodeEncodeError, for half a surrogate pair, too
        return body


def _path(path: str) -> list[str]:
    names = path.strip().split(".")
    if not all(names):
        raise ValueError(f"'{path}' is no path such as parameters.order")
    return names


def _entry(content: Any, name: str, path: Sequence[str]) -> Any:
    try:
        return content[int(name)] if isinstance(content, list) else content[name]
    except (LookupError, TypeError, ValueError):
        raise ValueError(f"it has no {'.'.join(path)}") from None
