"""The process that makes costly checks: ``python -m worker.checks``, started by
:mod:`worker.checks.process`. It reads jobs from its standard input and writes verdicts to its
standard output, until the input ends or a job's time is over. An empty verdict comes first: the
process is ready.
"""

import contextlib
import json
import marshal
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from worker.checks.jobs import PREPARE, Prepared, Verdict
from worker.checks.wire import HEAD, MISSING, Job, Reply
from worker.tasks.cache import Cache

# Largest data segment of the process, in bytes. It starts with some 20 MB, and preparing a schema
# of 2 MB takes 60 MB. The manifests' limit has room for a worker and this process.
DATA_MAX = 160 * 1024 * 1024
# Most bytes of schema texts to keep prepared. In memory a schema takes some 20 times its text.
READY_MAX = 2 * 1024 * 1024
# Linux's PR_SET_PDEATHSIG.
_PARENT_DEATH_SIGNAL = 1

# Prepared schemas, by kind and digest.
Ready = Cache[tuple[str, bytes], Prepared]


def main() -> None:
    """Serve until the input ends."""
    jobs, replies = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    # Output of libraries must not get into the replies or the worker's log.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    _be_the_first_to_go()
    ready: Ready = Cache(READY_MAX)
    replies.write(HEAD.pack(0))
    replies.flush()
    while (job := _next(jobs)) is not None:
        used = time.process_time()
        # The kernel ends the process when its time is over: nothing else ends a pattern match.
        resource.setrlimit(resource.RLIMIT_CPU, (int(used + job.seconds) + 1, resource.RLIM_INFINITY))
        reply, last = _reply(job, ready)
        data = json.dumps([time.process_time() - used, *reply]).encode()
        replies.write(HEAD.pack(len(data)) + data)
        replies.flush()
        if last:
            return


def _reply(job: Job, ready: Ready) -> tuple[Reply, bool]:
    """The reply to a job, and whether the process must end after it."""
    try:
        if job.kind == "template":
            from worker.checks.templates import rendered

            verdict = rendered(job.value, job.room)
        else:
            prepared = ready.get((job.kind, job.digest))
            if prepared is None:
                if job.text is None:
                    return (MISSING, "", None), False
                prepared = PREPARE[job.kind](job.text)
                ready.put((job.kind, job.digest), prepared, len(job.text))
            verdict = prepared.verdict(job.value)
    except MemoryError:
        return ("costly", f"it takes more than {DATA_MAX >> 20} MiB of memory", None), True
    except RecursionError:
        verdict = Verdict("costly", "it is nested too deep")
    except Exception as error:  # the edge: the libraries don't expect such schemas
        verdict = Verdict("unusable", f"Invalid schema: {error}")
    # An answer has no room for a longer message.
    return (verdict.outcome, verdict.message[: job.room], verdict.references), False


def _next(jobs: BinaryIO) -> Job | None:
    head = jobs.read(HEAD.size)
    if len(head) < HEAD.size:
        return None
    return Job(*marshal.loads(jobs.read(*HEAD.unpack(head))))  # noqa: S302  # the worker wrote it


def _be_the_first_to_go() -> None:
    """Protect the worker: limit the memory, end together with the worker, and be the first process
    that the kernel kills if memory is short.
    """
    parent = os.getppid()
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_DATA, (DATA_MAX, DATA_MAX))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # The worker handles a terminal's Ctrl-C.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    if sys.platform == "linux":
        _at_parents_end()(_PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(0)


def _at_parents_end() -> Callable[..., Any]:
    import ctypes

    return ctypes.CDLL(None).prctl


if __name__ == "__main__":
    main()
