"""Keeps the content of messages while somebody decides what becomes of them: in memory, and in a
temporary file without a name once there is much.
"""

from dataclasses import dataclass
from tempfile import SpooledTemporaryFile

from worker.broker.incoming import read_message
from worker.contract.message import Message

# Bytes to keep in memory.
MAX_MEMORY = 32 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Kept:
    """The place of a message in its spool, and the sizes of its parts, in bytes."""

    start: int
    properties: int
    body: int

    @property
    def size(self) -> int:
        """Of both parts."""
        return self.properties + self.body


class Spool:
    """Messages by their places."""

    def __init__(self) -> None:
        self._file = SpooledTemporaryFile(max_size=MAX_MEMORY)  # noqa: SIM115  # closed by close()
        self._end = 0

    def put(self, message: Message) -> Kept:
        """Keep a message.

        Raises:
            OSError: there is no directory for temporary files, or no space in it.
        """
        self._file.seek(self._end)
        self._file.write(message.raw_properties)
        self._file.write(message.body)
        kept = Kept(self._end, len(message.raw_properties), len(message.body))
        self._end += kept.size
        return kept

    def get(self, kept: Kept) -> Message:
        """A kept message."""
        self._file.seek(kept.start)
        properties, body = self._file.read(kept.properties), self._file.read(kept.body)
        return read_message(properties, body)

    def close(self) -> None:
        """Forget all messages."""
        self._file.close()
