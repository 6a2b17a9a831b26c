"""Every request of the hostile corpus at every place of a batch of good ones, on both databases.
``-s`` prints the table.
"""

from pathlib import Path

import aiormq
import pytest
from aiormq.abc import ChannelFrame
from aiormq.exceptions import ChannelPreconditionFailed

from tests.faults.hostile import BATCH, CORPUS, GOOD, REFUSED_BY_BROKER, Hostile, frames, serve, table

SMALL = 5_000


@pytest.mark.parametrize(
    ("database", "fast_path"),
    [pytest.param("sqlite", True, marks=pytest.mark.long), ("postgresql", True), ("sqlite", False)],
)
async def test_hostile_requests_are_answered_and_all_around_them_is_served(
    request: pytest.FixtureRequest, amqp_url: str, queue: str, tmp_path: Path, database: str, fast_path: bool
) -> None:
    # Without the fast path, only the reading of properties differs. (The many large bodies would
    # also exceed a test's time limit.)
    corpus = [
        each for each in CORPUS if fast_path or ((each.properties or each.raw) and len(each.body) < SMALL)
    ]
    run = await serve(
        corpus,
        amqp_url=amqp_url,
        database_url=request.getfixturevalue(f"{database}_url"),
        queue=queue,
        folder=tmp_path,
        fast_path=fast_path,
    )
    print("", table({"": run}), sep="\n")
    assert run.code == 0
    assert "session_lost" not in run.log
    for failure in ("decode_failed", "store_failed", "Traceback"):
        assert failure not in run.log
    for row in run.rows:
        hostile = row.hostile
        answer = str(hostile.status) if hostile.replied else f"({hostile.status})"
        assert row.answers == {answer: BATCH}, hostile.name
        assert row.letters == [int(hostile.status >= 400)] * BATCH, hostile.name
        assert row.served == row.neighbours == BATCH * (BATCH - hostile.stored), hostile.name
        assert row.places == (set(range(BATCH)) if hostile.stored else set()), hostile.name
    assert run.stray == []
    created = sum(row.hostile.status < 400 for row in run.rows)
    assert run.stored == 1 + sum(row.neighbours for row in run.rows) + BATCH * created


@pytest.mark.parametrize("properties", REFUSED_BY_BROKER, ids=str)
async def test_what_the_broker_itself_refuses_reaches_no_worker(
    amqp_url: str, queue: str, properties: dict[str, object]
) -> None:
    """If one of these reached a worker in another way, it would be in the corpus."""
    connection = await aiormq.connect(amqp_url)
    channel = await connection.channel(publisher_confirms=False)
    await channel.queue_declare(queue, exclusive=True)
    wire = frames("x", GOOD, Hostile("", GOOD, 0, properties), queue, "")
    await connection.write_queue.put(ChannelFrame(payload=wire, should_close=False))
    with pytest.raises(ChannelPreconditionFailed):
        await channel.queue_declare(queue, passive=True)
    await connection.close()
