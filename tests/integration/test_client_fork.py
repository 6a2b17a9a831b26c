"""The blocking client in a forked process whose parent has used it, as with Gunicorn's preload or
Celery's prefork.
"""

import asyncio
import subprocess
import sys

from tests.support.producer import Producer

# Each process prints the names of its runs; the first one also prints its children's exit codes.
FORKED = """
import os, sys, threading, time
from worker.client import BrokerGone
from worker.client.sync import FlowRunClient

url, queue = sys.argv[1:]
flow_id = "5d9c3a9e-7e0c-4a4b-8f0a-0c7f3d1f5a11"


def create(name):
    print(client.create_flow_run(flow_id, name=name, timeout=30).name, flush=True)


client = FlowRunClient(url, queue=queue)
create("parent")
children = []
for number in range(3):
    if (pid := os.fork()) == 0:
        create(f"child {number}")
        if number == 1:  # a grandchild
            if (pid := os.fork()) == 0:
                create("grandchild")
                sys.exit()
            os.waitpid(pid, 0)
            create("child 1 again")
        if number == 2:
            client.close()
            try:
                create("none")
            except BrokerGone as error:
                print(error, flush=True)
        sys.exit()  # with all that Python does at its end
    children.append(pid)
create("parent again")
codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
create("parent at the end")
client.close()
for _ in range(1000):  # the client's thread is at its last instructions
    if threading.active_count() == 1:
        break
    time.sleep(0.01)
print(codes, threading.active_count())
"""

# A fork during create_many: the child lacks the threads that deliver its outcomes.
IN_THE_MIDDLE = """
import os, sys
from worker.client import BrokerGone
from worker.client.sync import FlowRunClient

url, queue = sys.argv[1:]
client = FlowRunClient(url, queue=queue)
outcomes = client.create_many([{"flow_id": "5d9c3a9e-7e0c-4a4b-8f0a-0c7f3d1f5a11"}] * 50, concurrency=10)
next(outcomes)
if (pid := os.fork()) == 0:
    try:
        list(outcomes)
    except BrokerGone as error:
        print(error, flush=True)
    sys.exit()
assert os.waitpid(pid, 0)[1] == 0
print(len(list(outcomes)))
client.close()
"""


async def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    # -X dev reports unclosed resources and coroutines that were never awaited.
    command = [sys.executable, "-W", "ignore::ResourceWarning", "-X", "dev", "-c", program, *arguments]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=120)
    # It also reports slow steps, which occur on a busy machine.
    lines = done.stderr.splitlines(keepends=True)
    done.stderr = "".join(line for line in lines if not line.startswith("Executing "))
    return done


async def test_forked_processes_have_connections_of_their_own(shared_worker: Producer, amqp_url: str) -> None:
    done = await run(FORKED, amqp_url, shared_worker.queue)
    assert (done.returncode, done.stderr) == (0, "")
    *lines, end = done.stdout.splitlines()
    assert sorted(lines) == [
        "The client is closed. It was not sent.",
        "child 0",
        "child 1",
        "child 1 again",
        "child 2",
        "grandchild",
        "parent",
        "parent again",
        "parent at the end",
    ]
    assert end == "[0, 0, 0] 1"


async def test_fork_in_the_middle_of_many_ends_them_in_the_child_alone(
    shared_worker: Producer, amqp_url: str
) -> None:
    done = await run(IN_THE_MIDDLE, amqp_url, shared_worker.queue)
    assert (done.returncode, done.stderr) == (0, "")
    in_the_child, in_the_parent = done.stdout.splitlines()
    told = "The process was forked while the outcomes were being waited for. It may have been sent"
    assert in_the_child.startswith(told)
    assert in_the_parent == "49"
