"""The client waits for ends of runs, on a real broker. The tests themselves tell the states, as
DESIGN's contract has them.
"""

import asyncio
import pickle
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any
from uuid import UUID, uuid4

import pytest
from yarl import URL

from tests.support.producer import Producer
from tests.support.proxy import Proxy
from tests.support.published_states import Teller
from tests.support.rabbitmq import RabbitMQ
from worker.client import (
    AccessRefused,
    BrokerGone,
    FlowRunClient,
    NotFound,
    StatesNotTold,
    WaitTimedOut,
)
from worker.client import waits as waits_module
from worker.client.sync import FlowRunClient as SyncClient
from worker.contract.record import FlowRunRecord

FLOW_ID = "5d9c3a9e-7e0c-4a4b-8f0a-0c7f3d1f5a11"
FINAL = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


@pytest.fixture
async def teller(amqp_url: str, queue: str) -> AsyncIterator[Teller]:
    async with Teller(amqp_url, queue) as teller:
        yield teller


@pytest.fixture
async def client(amqp_url: str, queue: str) -> AsyncIterator[FlowRunClient]:
    async with FlowRunClient(amqp_url, queue=queue) as client:
        yield client


def bindings(rabbitmq: RabbitMQ, queue: str) -> list[str]:
    """The routing keys that are bound to the exchange of states."""
    listed = rabbitmq.ctl("list_bindings", "source_name", "routing_key", "--no-table-headers")
    lines = (line.split("\t") for line in listed.splitlines())
    return [line[1] for line in lines if line[0] == f"{queue}.states" and line[1] != "-"]


def queues_of_states(rabbitmq: RabbitMQ, queue: str) -> set[str]:
    """The queues that are bound to the exchange of states."""
    listed = rabbitmq.ctl("list_bindings", "source_name", "destination_name", "--no-table-headers")
    lines = (line.split("\t") for line in listed.splitlines())
    return {line[1] for line in lines if line[0] == f"{queue}.states"}


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(120):
        while not await asyncio.to_thread(condition):
            await asyncio.sleep(0.05)


def state_of(record: FlowRunRecord | None) -> str | None:
    return record and record.state_type and record.state_type.value


@pytest.mark.parametrize("state", FINAL)
async def test_end_after_the_wait_began(teller: Teller, client: FlowRunClient, state: str) -> None:
    run_id = teller.add()
    waiting = asyncio.create_task(client.wait_for_flow_run(run_id))
    await until(lambda: teller.reads == 1)
    await teller.tell(run_id, "RUNNING")
    await teller.tell(run_id, state)
    async with asyncio.timeout(60):
        record = await waiting
    assert (record.id, state_of(record)) == (run_id, state)
    assert record.state is not None
    assert record.state.type == state


async def test_end_before_the_wait(teller: Teller, client: FlowRunClient) -> None:
    run_id = teller.add("FAILED")
    async with asyncio.timeout(60):
        assert state_of(await client.wait_for_flow_run(str(run_id))) == "FAILED"


async def test_end_while_the_wait_begins(teller: Teller, client: FlowRunClient) -> None:
    """A hundred waits, each with an end at some time of its beginning."""

    async def once(number: int) -> str | None:
        run_id = teller.add()
        waiting = asyncio.create_task(client.wait_for_flow_run(run_id))
        await asyncio.sleep(number / 1000)
        await teller.tell(run_id, FINAL[number % 4])
        return state_of(await waiting)

    async with asyncio.timeout(120):
        assert await asyncio.gather(*(once(number) for number in range(100))) == [*FINAL] * 25


async def test_waits_for_one_run_are_independent(
    teller: Teller, client: FlowRunClient, rabbitmq: RabbitMQ, queue: str
) -> None:
    run_id = teller.add()
    first, second, third = (asyncio.create_task(client.wait_for_flow_run(run_id)) for _ in range(3))
    await until(lambda: teller.reads == 3)
    first.cancel()
    await asyncio.wait((first,))
    with pytest.raises(WaitTimedOut):
        await client.wait_for_flow_run(run_id, timeout=0.3)
    assert bindings(rabbitmq, queue) == [f"*.*.*.{run_id}"]
    await teller.tell(run_id, "COMPLETED", times=2)
    async with asyncio.timeout(60):
        assert [state_of(each) for each in await asyncio.gather(second, third)] == ["COMPLETED"] * 2
    await until(lambda: not bindings(rabbitmq, queue))
    fourth = asyncio.create_task(client.wait_for_flow_run(teller.add("CRASHED")))
    assert state_of(await fourth) == "CRASHED"


async def test_ended_and_cancelled_waits_leave_no_binding(
    teller: Teller, client: FlowRunClient, rabbitmq: RabbitMQ, queue: str
) -> None:
    run_ids = [teller.add() for _ in range(30)]
    waiting = [asyncio.create_task(client.wait_for_flow_run(each)) for each in run_ids]
    await until(lambda: len(bindings(rabbitmq, queue)) == 30)
    # Some begin at this moment, and are cancelled at once.
    more = [asyncio.create_task(client.wait_for_flow_run(teller.add())) for _ in range(10)]
    await asyncio.sleep(0.001)
    for each in (*waiting[10:], *more):
        each.cancel()
    for run_id in run_ids[:5]:
        await teller.tell(run_id, "COMPLETED")
    timed_out = await asyncio.gather(
        *(client.wait_for_flow_run(each, timeout=0.2) for each in run_ids[:10:2]), return_exceptions=True
    )
    assert {type(each) for each in timed_out} <= {WaitTimedOut, FlowRunRecord}
    await until(lambda: len(bindings(rabbitmq, queue)) == 5)
    for run_id in run_ids[5:10]:
        await teller.tell(run_id, "FAILED")
    async with asyncio.timeout(60):
        ended = await asyncio.gather(*waiting[:10])
    assert [state_of(each) for each in ended] == ["COMPLETED"] * 5 + ["FAILED"] * 5
    await until(lambda: not bindings(rabbitmq, queue))
    assert len(queues_of_states(rabbitmq, queue)) == 1


async def test_time_over_has_the_last_record(teller: Teller, client: FlowRunClient) -> None:
    run_id = teller.add("SCHEDULED")
    with pytest.raises(WaitTimedOut, match=r"has not ended within 0\.5 seconds: it is Scheduled") as over:
        await client.wait_for_flow_run(run_id, timeout=0.5)
    assert state_of(over.value.record) == "SCHEDULED"
    waiting = asyncio.create_task(client.wait_for_flow_run(run_id, timeout=1))
    await until(lambda: teller.reads == 2)
    await teller.tell(run_id, "RUNNING")
    with pytest.raises(WaitTimedOut, match="it is Running") as over:
        await waiting
    again = pickle.loads(pickle.dumps(over.value))
    assert (str(again), again.record) == (str(over.value), over.value.record)
    assert state_of(again.record) == "RUNNING"


async def test_a_missing_run_is_told_at_once(teller: Teller, client: FlowRunClient) -> None:
    with pytest.raises(NotFound):
        await client.wait_for_flow_run(uuid4())
    with pytest.raises(ValueError, match="UUID"):
        await client.wait_for_flow_run("no id")
    for wrong in (0, -1, True, "1"):
        with pytest.raises((TypeError, ValueError), match="timeout is"):
            await client.wait_for_flow_run(uuid4(), timeout=wrong)  # type: ignore[arg-type]


async def test_nobody_tells_states(client: FlowRunClient, producer: Producer, queue: str) -> None:
    """Without the exchange: at once, and no run is made."""
    await producer.channel.declare_queue(queue)
    with pytest.raises(StatesNotTold, match=f"no exchange '{queue}.states'"):
        await client.wait_for_flow_run(uuid4())
    with pytest.raises(StatesNotTold) as missing:
        await client.create_flow_run(FLOW_ID, wait=True)
    assert not missing.value.maybe_sent
    with pytest.raises(StatesNotTold):
        await client.run_deployment("a/b", wait=5)
    with pytest.raises(StatesNotTold):
        await anext(client.states())
    assert await producer.depth() == 0
    with SyncClient(str(client._url), queue=queue) as blocking:
        with pytest.raises(StatesNotTold):
            blocking.wait_for_flow_run(uuid4())
        with pytest.raises(StatesNotTold):
            next(blocking.states())


async def test_states_are_turned_off(teller: Teller, client: FlowRunClient) -> None:
    """The exchange is left over. A run that is made before that is found out has its record."""
    reason = "states are not told here"
    teller.refuse = (400, reason, {"detail": reason})
    with pytest.raises(StatesNotTold, match="WORKER_STATES is off"):
        await client.wait_for_flow_run(teller.add())
    with pytest.raises(StatesNotTold) as off:
        await client.create_flow_run(FLOW_ID, wait=True)
    assert off.value.maybe_sent
    assert off.value.record is not None
    assert off.value.record.id in teller.runs


async def test_an_older_worker_refuses_the_read(
    teller: Teller, client: FlowRunClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its words, as 0.2.0 wrote them. The read is tried again, but not for ever."""
    tries = waits_module.READ_TRIES
    monkeypatch.setattr(waits_module, "READ_TRIES", 1_000_000)
    monkeypatch.setattr(waits_module, "FIRST_READ_PAUSE", 0.05)
    monkeypatch.setattr(waits_module, "LONGEST_READ_PAUSE", 0.1)
    detail = [
        {"type": "missing", "loc": ["body", "flow_id"], "msg": "Field required", "input": {}},
        {"type": "extra_forbidden", "loc": ["body", "id"], "msg": "Extra inputs are not permitted"},
    ]
    body = {"exception_message": "Invalid request received.", "exception_detail": detail}
    teller.refuse = (422, "body.flow_id: Field required (and 1 more)", body)
    run_id = teller.add("COMPLETED")
    waiting = asyncio.create_task(client.wait_for_flow_run(run_id))
    await until(lambda: teller.reads >= 2)
    teller.refuse = None
    assert state_of(await waiting) == "COMPLETED"

    teller.refuse = (422, "body.flow_id: Field required (and 1 more)", body)
    reads, listening = teller.reads, teller.add()
    told = asyncio.create_task(client.wait_for_flow_run(listening))
    await until(lambda: teller.reads > reads)
    await teller.tell(listening, "FAILED")
    assert state_of(await told) == "FAILED"

    monkeypatch.setattr(waits_module, "READ_TRIES", tries)
    reads = teller.reads
    with pytest.raises(StatesNotTold, match=rf"{tries} times a worker answered that is older than 0\.3\.0"):
        await client.wait_for_flow_run(run_id)
    # The last read of the wait before may be answered only now.
    assert tries <= teller.reads - reads <= tries + 1


async def test_create_and_wait(teller: Teller, client: FlowRunClient) -> None:
    async def end(state: str) -> None:
        before = set(teller.runs)
        await until(lambda: bool(set(teller.runs) - before))
        (run_id,) = set(teller.runs) - before
        await teller.tell(run_id, state)

    async with asyncio.timeout(120):
        record, _ = await asyncio.gather(client.create_flow_run(FLOW_ID, wait=True), end("COMPLETED"))
        assert state_of(record) == "COMPLETED"
        record, _ = await asyncio.gather(client.run_deployment("a/b", wait=60), end("FAILED"))
        assert state_of(record) == "FAILED"
        assert state_of(await client.run_deployment("a/b", wait=False)) == "PENDING"
        # An existing run that has ended already.
        reads = teller.reads
        ended = await client.create_flow_run(FLOW_ID, context={"state": "CRASHED"}, wait=True)
        assert state_of(ended) == "CRASHED"
        assert teller.reads == reads
        with pytest.raises(WaitTimedOut) as over:
            await client.create_flow_run(FLOW_ID, wait=0.5)
        assert over.value.maybe_sent
        assert over.value.record is not None
        for wrong in (0, -1.0, "x"):
            with pytest.raises((TypeError, ValueError), match="wait is"):
                await client.create_flow_run(FLOW_ID, wait=wrong)  # type: ignore[arg-type]


async def test_states_are_given_once_and_in_their_order(teller: Teller, client: FlowRunClient) -> None:
    run_id, other = teller.add(), teller.add()
    states = client.states(f"*.*.*.{run_id}")
    failed = client.states("FAILED.#")
    given: list[str | None] = []
    first, first_failed = asyncio.create_task(anext(states)), asyncio.create_task(anext(failed))
    while not (first.done() and first_failed.done()):
        await teller.tell(other, "FAILED")
        await teller.tell(run_id, "PENDING")
        await asyncio.sleep(0.05)
    assert first.result().id == run_id
    assert first_failed.result().id == other
    crashed = await teller.tell(run_id, "CRASHED", times=3)
    running = await teller.tell(run_id, "RUNNING", times=2)
    await teller.tell(run_id, "CRASHED", id_=crashed)
    await teller.tell(run_id, "COMPLETED")
    async with asyncio.timeout(60):
        async for record in states:
            if state_of(record) != "PENDING":
                given.append(str(record.state_id))
            if state_of(record) == "COMPLETED":
                break
    assert given[:2] == [str(crashed), str(running)]
    assert len(given) == 3
    with pytest.raises(ValueError, match="255 bytes"):
        await anext(client.states("x" * 256))


async def test_a_slow_reader_of_states_holds_few(
    teller: Teller, client: FlowRunClient, rabbitmq: RabbitMQ, queue: str
) -> None:
    """The broker holds the others, and other waits go on."""
    run_id = teller.add()
    states = client.states()
    first = asyncio.create_task(anext(states))
    await until(lambda: len(queues_of_states(rabbitmq, queue)) == 1)
    for _ in range(500):
        await teller.tell(run_id, "RUNNING")
    await first
    (name,) = queues_of_states(rabbitmq, queue)

    def held() -> int:
        listed = rabbitmq.ctl("list_queues", "name", "messages_unacknowledged", "--no-table-headers")
        return {line.split("\t")[0]: int(line.split("\t")[1]) for line in listed.splitlines()}[name]

    await until(lambda: held() == 64)
    waited = teller.add("COMPLETED")
    assert state_of(await client.wait_for_flow_run(waited)) == "COMPLETED"
    async with asyncio.timeout(60):
        for _ in range(499):
            await anext(states)
    await states.aclose()
    await until(lambda: name not in queues_of_states(rabbitmq, queue))


async def test_a_thousand_waits_share_one_queue(
    teller: Teller, client: FlowRunClient, rabbitmq: RabbitMQ, queue: str
) -> None:
    run_ids = [teller.add() for _ in range(1000)]
    waiting = [asyncio.create_task(client.wait_for_flow_run(each)) for each in run_ids]
    await until(lambda: teller.reads == 1000)
    assert len(bindings(rabbitmq, queue)) == 1000
    assert len(queues_of_states(rabbitmq, queue)) == 1
    for number, run_id in enumerate(run_ids):
        await teller.tell(run_id, FINAL[number % 4])
    async with asyncio.timeout(120):
        ended = await asyncio.gather(*waiting)
    assert [state_of(each) for each in ended] == [*FINAL] * 250
    assert [each.id for each in ended] == run_ids
    await until(lambda: not bindings(rabbitmq, queue))


async def test_a_cut_connection_binds_and_reads_again(
    teller: Teller, rabbitmq: RabbitMQ, amqp_url: str, queue: str
) -> None:
    """One run ends while the connection is away, the other one afterwards."""
    async with Proxy([rabbitmq.port]) as network:
        url = str(URL(amqp_url).with_port(network.port))
        async with FlowRunClient(url, queue=queue) as client:
            meanwhile, afterwards = teller.add(), teller.add()
            states = client.states(f"COMPLETED.*.*.{afterwards}")
            next_state = asyncio.create_task(anext(states))
            waiting = [
                asyncio.create_task(client.wait_for_flow_run(each)) for each in (meanwhile, afterwards)
            ]
            await until(lambda: teller.reads == 2 and len(queues_of_states(rabbitmq, queue)) == 2)
            targets, network._targets = network._targets, []
            network.cut()
            await until(lambda: not queues_of_states(rabbitmq, queue))
            await teller.tell(meanwhile, "FAILED")
            network._targets = targets
            async with asyncio.timeout(60):
                assert state_of(await waiting[0]) == "FAILED"
            await until(lambda: teller.reads >= 4 and len(queues_of_states(rabbitmq, queue)) == 2)
            await teller.tell(afterwards, "COMPLETED")
            async with asyncio.timeout(60):
                assert state_of(await waiting[1]) == "COMPLETED"
                assert (await next_state).id == afterwards
            await states.aclose()
            for _ in range(5):
                run_id = teller.add()
                again = asyncio.create_task(client.wait_for_flow_run(run_id))
                await asyncio.sleep(0.02)
                network.cut()
                await teller.tell(run_id, "CRASHED")
                async with asyncio.timeout(60):
                    assert state_of(await again) == "CRASHED"


async def test_a_deleted_queue_is_made_again(
    teller: Teller, client: FlowRunClient, producer: Producer, rabbitmq: RabbitMQ, queue: str
) -> None:
    run_id = teller.add()
    waiting = asyncio.create_task(client.wait_for_flow_run(run_id))
    await until(lambda: teller.reads == 1)
    (name,) = queues_of_states(rabbitmq, queue)
    name = f'rabbit_misc:r(<<"/">>, queue, <<"{name}">>)'
    found = f"element(2, rabbit_amqqueue:lookup({name}))"
    rabbitmq.ctl("eval", f'rabbit_amqqueue:delete({found}, false, false, <<"test">>).')
    await until(lambda: teller.reads == 2)
    await teller.tell(run_id, "COMPLETED")
    async with asyncio.timeout(60):
        assert state_of(await waiting) == "COMPLETED"


async def test_an_end_that_was_not_published_is_found(
    teller: Teller, client: FlowRunClient, producer: Producer, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An operator deletes the exchange. A worker declares it again, without the bindings."""
    monkeypatch.setattr(waits_module, "LOOK_AGAIN", 1.0)
    silent, bound_again = teller.add(), teller.add()
    waiting = [asyncio.create_task(client.wait_for_flow_run(each)) for each in (silent, bound_again)]
    await until(lambda: teller.reads == 2)
    await producer.channel.exchange_delete(f"{queue}.states")
    await producer.channel.declare_exchange(f"{queue}.states", "topic", durable=True)
    teller.runs[silent] = teller.runs[teller.add("FAILED")]
    async with asyncio.timeout(60):
        assert state_of(await waiting[0]) == "FAILED"
    await until(lambda: teller.reads >= 4)
    monkeypatch.setattr(waits_module, "LOOK_AGAIN", 1000.0)
    await asyncio.sleep(1.5)
    await teller.tell(bound_again, "COMPLETED")
    async with asyncio.timeout(60):
        assert state_of(await waiting[1]) == "COMPLETED"


async def test_a_broker_without_its_data_is_waited_for(
    teller: Teller, rabbitmq: RabbitMQ, producer: Producer, amqp_url: str, queue: str
) -> None:
    """Until a worker has declared the exchange again."""
    async with Proxy([rabbitmq.port]) as network:
        url = str(URL(amqp_url).with_port(network.port))
        async with FlowRunClient(url, queue=queue) as client:
            run_id = teller.add()
            waiting = asyncio.create_task(client.wait_for_flow_run(run_id))
            await until(lambda: teller.reads == 1)
            await producer.channel.exchange_delete(f"{queue}.states")
            network.cut()
            with pytest.raises(StatesNotTold):  # a wait that begins now
                await client.wait_for_flow_run(run_id)
            await asyncio.sleep(0.5)
            await producer.channel.declare_exchange(f"{queue}.states", "topic", durable=True)
            await until(lambda: teller.reads == 2)
            await teller.tell(run_id, "COMPLETED")
            async with asyncio.timeout(60):
                assert state_of(await waiting) == "COMPLETED"


async def test_a_closed_client_ends_its_waits(teller: Teller, amqp_url: str, queue: str) -> None:
    client = FlowRunClient(amqp_url, queue=queue)
    run_id = teller.add()
    states = client.states()
    waiting = [asyncio.create_task(client.wait_for_flow_run(run_id)) for _ in range(3)]
    waiting.append(asyncio.create_task(client.create_flow_run(FLOW_ID, wait=True)))
    next_state: asyncio.Task[Any] = asyncio.create_task(anext(states))
    await until(lambda: teller.reads == 4)
    await client.close()
    async with asyncio.timeout(60):
        ended = await asyncio.gather(*waiting, next_state, return_exceptions=True)
    assert [type(each) for each in ended] == [BrokerGone] * 5
    assert all("client is closed" in str(each) for each in ended)
    with pytest.raises(BrokerGone):
        await client.wait_for_flow_run(run_id)


async def test_rights_of_who_waits(teller: Teller, rabbitmq: RabbitMQ, amqp_url: str, queue: str) -> None:
    """Read on NAME.states, and all three on the queues that the broker names."""
    name = f"waiter-{uuid4().hex[:8]}"
    rabbitmq.ctl("add_user", name, "secret")
    url = str(URL(amqp_url).with_user(name).with_password("secret"))
    try:
        rabbitmq.ctl("set_permissions", name, "^$", "^amq\\.default$", "^$")
        async with FlowRunClient(url, queue=queue) as client:
            with pytest.raises(AccessRefused, match="refuses to let this user follow states"):
                await client.create_flow_run(FLOW_ID, wait=True)
            with pytest.raises(AccessRefused):
                await anext(client.states())
            assert teller.runs == {}
            assert state_of(await client.create_flow_run(FLOW_ID)) == "PENDING"
        states = f"^({queue}.states|amq\\.gen-.*)$"
        rabbitmq.ctl("set_permissions", name, "^amq\\.gen-.*$", "^(amq\\.default|amq\\.gen-.*)$", states)
        async with FlowRunClient(url, queue=queue) as client:
            run_id = teller.add()
            waiting = asyncio.create_task(client.wait_for_flow_run(run_id))
            await until(lambda: teller.reads == 1)
            await teller.tell(run_id, "COMPLETED")
            assert state_of(await waiting) == "COMPLETED"
    finally:
        rabbitmq.ctl("delete_user", name)


async def test_blocking_client_waits(teller: Teller, amqp_url: str, queue: str) -> None:
    run_id, late = teller.add(), teller.add("RUNNING")
    given: list[UUID] = []
    reading = threading.Event()

    def program() -> list[str | None]:
        with SyncClient(amqp_url, queue=queue) as client:
            with pytest.raises(WaitTimedOut, match="it is Running"):
                client.wait_for_flow_run(late, timeout=0.3)
            ended = [client.wait_for_flow_run(run_id, timeout=60), client.wait_for_flow_run(run_id)]
            ended.append(client.create_flow_run(FLOW_ID, context={"state": "CANCELLED"}, wait=True))
            with pytest.raises(WaitTimedOut):
                client.run_deployment("a/b", wait=0.3)
            states = client.states("COMPLETED.#")
            reading.set()
            given.extend(next(states).id for _ in range(2))
            states.close()  # type: ignore[attr-defined]  # it is a generator
            return [state_of(each) for each in ended]

    running = asyncio.create_task(asyncio.to_thread(program))
    await until(lambda: teller.reads == 2)
    await teller.tell(run_id, "FAILED")
    await until(reading.is_set)
    while not running.done():
        await teller.tell(late, "COMPLETED")
        await asyncio.sleep(0.05)
    assert await running == ["FAILED", "FAILED", "CANCELLED"]
    assert given == [late, late]


def test_programs_end_cleanly_while_they_follow(amqp_url: str, queue: str, capfd: Any) -> None:
    """Nothing is printed if a loop ends with an open iterator and open waits."""

    async def program() -> None:
        async with Teller(amqp_url, queue) as teller:
            run_id = teller.add()
            client = FlowRunClient(amqp_url, queue=queue)
            follower = asyncio.create_task(anext(client.states()))
            waiting = asyncio.create_task(client.wait_for_flow_run(run_id))
            await until(lambda: teller.reads == 1)
            while not follower.done():
                await teller.tell(run_id, "RUNNING")
                await asyncio.sleep(0.05)
            waiting.cancel()
            client._closed = True  # or it warns that it was not closed

    asyncio.run(program())
    assert capfd.readouterr() == ("", "")
