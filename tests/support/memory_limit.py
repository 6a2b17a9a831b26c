"""A container's memory limit: a memory cgroup, of version 1 or 2; needs root."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

MIB = 1024 * 1024


@contextmanager
def limited(mebibytes: int) -> Iterator[Sequence[str]]:
    """A command prefix that runs a worker within a memory limit in MiB; empty for 0.

    Raises:
        OSError: no memory cgroup can be made here.
    """
    if not mebibytes:
        yield ()
        return
    second = Path("/sys/fs/cgroup/cgroup.controllers").exists()
    group = Path("/sys/fs/cgroup", "" if second else "memory", f"flow-run-worker-{os.getpid()}")
    group.mkdir()
    try:
        (group / ("memory.max" if second else "memory.limit_in_bytes")).write_text(str(mebibytes * MIB))
        yield ("sh", "-c", f"echo $$ > {group}/cgroup.procs && exec {sys.executable} -m worker run", "sh")
    finally:
        group.rmdir()
