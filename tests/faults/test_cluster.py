"""Three RabbitMQ nodes on one machine, quorum queues with a replica on each, one node killed."""

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.faults.load import Load
from tests.support.postgresql import PostgreSQL
from tests.support.proxy import Proxy
from tests.support.rabbitmq import RabbitMQ
from tests.support.supervisor import Supervisor


@pytest.fixture
def nodes() -> Iterator[list[RabbitMQ]]:
    with RabbitMQ() as first, RabbitMQ(join=first) as second, RabbitMQ(join=first) as third:
        yield [first, second, third]


def leader(nodes: list[RabbitMQ], queue: str) -> RabbitMQ:
    status = nodes[0].ctl("list_queues", "--no-table-headers", "name", "leader", "members")
    (line,) = (line for line in status.splitlines() if line.split("\t")[0] == queue)
    _, name, members = line.split("\t")
    assert members.count("@localhost") == 3
    return next(node for node in nodes if node.name == name)


# In ``make test``, a broker of one node is killed in test_faults.py.
@pytest.mark.long
async def test_a_node_is_killed(
    nodes: list[RabbitMQ], cluster: PostgreSQL, queue: str, tmp_path: Path
) -> None:
    """The killed node leads the request queue: another takes over, and workers and producers
    continue there.
    """
    database_url = cluster.create_database()
    async with AsyncExitStack() as stack:
        balancer = await stack.enter_async_context(Proxy([node.port for node in nodes]))
        url = f"amqp://127.0.0.1:{balancer.port}/?heartbeat=2"
        load = await stack.enter_async_context(Load(url, queue, seed=1, replicated=True))
        environment = {
            "WORKER_AMQP_URL": url,
            "WORKER_DATABASE_URL": database_url,
            "WORKER_QUEUE": queue,
            "WORKER_MIGRATE": "true",
            "WORKER_HTTP_PORT": "0",
        }
        workers = Supervisor(tmp_path, environment)
        try:
            await workers.start(2)
            load.start()
            await asyncio.sleep(2)
            victim = await asyncio.to_thread(leader, nodes, queue)
            before = len(load.requests)
            await asyncio.to_thread(victim.kill)
            await asyncio.sleep(3)
            while len(load.requests) < before + 200:
                await asyncio.sleep(0.1)
            await asyncio.to_thread(victim.start)
            await asyncio.sleep(2)
            await load.stop()
            await load.settled()
            assert set(await workers.stop()) == {0}
            verdict = await load.verdict(database_url)
        finally:
            workers.kill_all()
    print(verdict)
    assert verdict.sound, verdict
    assert workers.died == []
