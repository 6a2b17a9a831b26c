"""Dead letters that a command acts on, in parts that are removed together. Knows no queue."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from worker.operate.letter_reader import Taken
from worker.operate.letter_spool import Kept

# Letters to remove at once. RabbitMQ sends a quorum queue 32 commands of a channel at a time and
# delays the others. Acknowledgements that are delayed when the channel closes are lost, and their
# replayed letters stay in this queue as well.
CHUNK = 16
# Bytes of bodies to send at once. The last one may exceed it.
CHUNK_BYTES = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Picked:
    """A letter to act on. Its content waits in a spool, unless it is to be purged."""

    id: str
    taken: Taken
    kept: Kept | None

    @property
    def size(self) -> int:
        """Bytes of the kept content."""
        return self.kept.size if self.kept else 0


def in_chunks(letters: Iterable[Picked]) -> Iterator[list[Picked]]:
    """Parts of :data:`CHUNK` letters or :data:`CHUNK_BYTES` at most."""
    chunk: list[Picked] = []
    size = 0
    for letter in letters:
        chunk.append(letter)
        size += letter.size
        if len(chunk) >= CHUNK or size >= CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk
