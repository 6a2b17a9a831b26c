"""New passwords, as deploy/OPERATIONS.md says: no request waits for them and none is lost."""

import asyncio

from sqlalchemy.engine import make_url
from yarl import URL

from tests.conftest import StartWorker
from tests.support.command import command
from tests.support.database import execute, fetch_runs
from tests.support.producer import Producer, Reply
from tests.support.rabbitmq import RabbitMQ
from worker.store import migrations

FLOW_ID = "5d9c3a9e-7e0c-4a4b-8f0a-0c7f3d1f5a11"


async def test_passwords_are_changed_while_requests_come(
    start_worker: StartWorker, producer: Producer, rabbitmq: RabbitMQ, postgresql_url: str, queue: str
) -> None:
    await migrations.upgrade(postgresql_url)
    await command("topology", "declare", amqp_url=rabbitmq.url, queue=queue)
    old, new = f"old_{queue.partition('.')[0][5:]}", f"new_{queue.partition('.')[0][5:]}"

    def add_user(name: str) -> str:
        rabbitmq.ctl("add_user", name, f"secret of {name}")
        rabbitmq.ctl("set_permissions", name, "^$", r"^amq\.default$", f"^{queue}$")
        return str(URL(rabbitmq.url).with_user(name).with_password(f"secret of {name}"))

    def as_role(name: str) -> str:
        return make_url(postgresql_url).set(username=name).render_as_string(hide_password=False)

    replies: list[Reply] = []
    stopping = asyncio.Event()

    async def send() -> None:
        while not stopping.is_set():
            replies.append(await producer.request({"flow_id": FLOW_ID}))

    async def some_more() -> None:
        enough = len(replies) + 20
        while len(replies) < enough:
            await asyncio.sleep(0.02)

    await execute(
        postgresql_url,
        f"CREATE ROLE {old} LOGIN PASSWORD 'first'",
        f"GRANT SELECT, INSERT ON ALL TABLES IN SCHEMA public TO {old}",
    )
    first = await asyncio.to_thread(start_worker, as_role(old), amqp_url=add_user(old), migrate=False)
    sending = asyncio.create_task(send())
    try:
        async with asyncio.timeout(300):
            await some_more()
            await execute(postgresql_url, f"CREATE ROLE {new} LOGIN PASSWORD 'second' IN ROLE {old}")
            second = await asyncio.to_thread(
                start_worker, as_role(new), amqp_url=add_user(new), migrate=False
            )
            assert await asyncio.to_thread(first.terminate) == 0
            rabbitmq.ctl("delete_user", old)
            await execute(postgresql_url, f"ALTER ROLE {old} NOLOGIN")
            await some_more()
            # It reconnects with the new password alone.
            rabbitmq.ctl("close_all_user_connections", new, "to see whether it comes back")
            await some_more()
    finally:
        stopping.set()
        await asyncio.wait((sending,), timeout=60)
        rabbitmq.ctl("delete_user", new)
    await sending
    assert {reply.status for reply in replies} == {201}
    assert len(await fetch_runs(postgresql_url)) == len(replies)
    assert second.process.poll() is None
