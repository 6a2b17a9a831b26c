"""Writes the seeds of the fuzzer into a folder: the small requests of the hostile corpus in the
fuzzer's format.
"""

import sys
from pathlib import Path

from tests.faults.hostile import CORPUS, frames

MAX_BYTES = 4096


def main(folder: Path) -> None:
    """Write a file for each."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, hostile in enumerate(CORPUS):
        wire = frames(f"{number}", hostile.body, hostile, "q", "r")
        publish = 8 + int.from_bytes(wire[3:7])
        header = wire[publish + 7 : publish + 7 + int.from_bytes(wire[publish + 3 : publish + 7])]
        flags, properties = header[12:14], header[14:]
        seed = (
            flags + len(properties).to_bytes(2) + properties + hostile.body
            if len(properties) < 65536
            else b""
        )
        if len(seed) <= MAX_BYTES:
            (folder / f"hostile-{number}").write_bytes(seed)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
