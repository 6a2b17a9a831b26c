"""Commands show no password, text of others can't steer a terminal, and files are private."""

import asyncio
import json
import os
import sqlite3
import stat
from pathlib import Path

import aio_pika
import pytest
from sqlalchemy.engine import make_url

from tests.conftest import StartWorker
from tests.support.command import command
from tests.support.producer import Producer
from worker.broker.topology import Topology

FLOW_ID = "5d9c3a9e-7e0c-4a4b-8f0a-0c7f3d1f5a11"
SECRET = "hunter2secret"
# A terminal command, a mark of direction, a line separator, and a character without width.
STEERING = "\x9b2J\u202e\u2028\u200b"


@pytest.mark.parametrize(
    "arguments",
    [["doctor"], ["db", "upgrade"], ["db", "current"], ["db", "prune", "--older-than", "1d", "--dry-run"]],
    ids=" ".join,
)
async def test_a_password_in_the_query_of_a_database_url_is_shown_by_no_command(
    postgresql_url: str, amqp_url: str, queue: str, arguments: list[str]
) -> None:
    url = make_url(postgresql_url)
    served = url.update_query_dict({"password": SECRET})
    refused = url.update_query_dict({"PassWD": SECRET})
    away = url.set(port=1).update_query_dict({"password": SECRET, "sslpassword": SECRET})
    for each in (served, refused, away):
        given = each.render_as_string(hide_password=False)
        done = await command(*arguments, amqp_url=amqp_url, queue=queue, database_url=given)
        assert SECRET not in done.out + done.err
        assert "Traceback" not in done.err
    assert url.database in done.out + done.err


async def test_nor_does_a_workers_log(start_worker: StartWorker, postgresql_url: str) -> None:
    url = make_url(postgresql_url).update_query_dict({"password": SECRET})
    worker = start_worker(url.render_as_string(hide_password=False))
    assert worker.terminate() == 0
    assert SECRET not in worker.output


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o600), (0o000, 0o600), (0o277, 0o400)])
async def test_the_sqlite_file_is_its_owners_alone(tmp_path: Path, umask: int, mode: int) -> None:
    file = tmp_path / "flow_runs.db"
    before = os.umask(umask)
    try:
        await command("db", "upgrade", database_url=f"sqlite:///{file}")
    finally:
        os.umask(before)
    assert stat.S_IMODE(file.stat().st_mode) == mode


async def test_its_log_is_as_private_and_a_file_that_stands_keeps_its_rights(
    start_worker: StartWorker, producer: Producer, sqlite_url: str, tmp_path: Path
) -> None:
    worker = await asyncio.to_thread(start_worker, sqlite_url)
    await producer.request({"flow_id": FLOW_ID})
    files = list(tmp_path.glob("flow_runs.db*"))
    assert {each.name for each in files} == {"flow_runs.db", "flow_runs.db-wal", "flow_runs.db-shm"}
    assert {stat.S_IMODE(each.stat().st_mode) for each in files} == {0o600}
    assert worker.terminate() == 0
    (tmp_path / "flow_runs.db").chmod(0o640)
    assert (await asyncio.to_thread(start_worker, sqlite_url)).terminate() == 0
    assert stat.S_IMODE((tmp_path / "flow_runs.db").stat().st_mode) == 0o640
    assert sqlite3.connect(tmp_path / "flow_runs.db").execute("SELECT count(*) FROM flow_run").fetchone()


async def test_a_hostile_letter_steers_no_terminal(amqp_url: str, queue: str) -> None:
    async with await aio_pika.connect(amqp_url) as connection:
        channel = await connection.channel()
        await Topology(queue).declare(channel)
        letter = aio_pika.Message(
            json.dumps({"flow_id": STEERING, "idempotency_key": STEERING}).encode(),
            message_id=STEERING,
            headers={"x-error": STEERING, "x-failed-at": STEERING, STEERING: STEERING},
        )
        await channel.default_exchange.publish(letter, f"{queue}.dead")
    causes = await command("dead-letters", "list", amqp_url=amqp_url, queue=queue)
    listing = ("dead-letters", "list", "--letters")
    listed = await command(*listing, amqp_url=amqp_url, queue=queue)
    as_json = await command(*listing, "--json", amqp_url=amqp_url, queue=queue)
    summary = json.loads(as_json.out)
    assert summary["error"] == summary["message_id"] == summary["idempotency_key"] == STEERING
    showing = ("dead-letters", "show", summary["id"])
    page = await command(*showing, amqp_url=amqp_url, queue=queue)
    shown = await command(*showing, "--json", amqp_url=amqp_url, queue=queue)
    whole = json.loads(shown.out)
    assert whole["headers"][STEERING] == whole["body"]["flow_id"] == STEERING
    for done in (causes, listed, as_json, page, shown):
        assert done.code == 0, done.err
        assert not set(STEERING) - {"2", "J"} & set(done.out + done.err)


async def test_a_reply_and_a_refusal_steer_no_terminal(
    start_worker: StartWorker, producer: Producer, sqlite_url: str, amqp_url: str
) -> None:
    start_worker(sqlite_url)
    arguments = ("create", "--flow-id", FLOW_ID, "--name", STEERING, "--tag", STEERING)
    created = await command(*arguments, amqp_url=amqp_url, queue=producer.queue)
    assert json.loads(created.out)["name"] == STEERING
    body = json.dumps({"flow_id": FLOW_ID, STEERING: 1}).encode()
    found, refused = [
        await command(
            *("create", "--json", "-", *unchecked), stdin=body, amqp_url=amqp_url, queue=producer.queue
        )
        for unchecked in ((), ("--no-check",))
    ]
    assert (found.code, refused.code) == (2, 1)
    for done in (created, found, refused):
        assert not set(STEERING) - {"2", "J"} & set(done.out + done.err)


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-Inf", "1e999"])
async def test_top_shows_a_worker_whose_figures_are_none(amqp_url: str, queue: str, value: str) -> None:
    page = "".join(
        f"flow_run_worker_{name} {value}\n"
        for name in (
            *("in_flight", "in_flight_bytes", "dead_letters_held", "events_outbox_age_seconds"),
            *("batch_size_count", "batch_size_sum", "redelivered_total", "reading_paused"),
            *('requests_total{outcome="created"}', 'stage_seconds_bucket{stage="create",le="+Inf"}'),
            *('build_info{version="\x9b2J"}', 'stage_seconds_bucket{stage="create",le="none"}'),
        )
    ).encode()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(page) + page)
        writer.close()

    await command("topology", "declare", amqp_url=amqp_url, queue=queue)
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        for columns in (200, 80):
            done = await command(
                *("top", "--once", "--interval", "0.2", url), amqp_url=amqp_url, queue=queue, columns=columns
            )
            assert done.code == 0, done.err
            assert "Traceback" not in done.err
            assert "\x9b" not in done.out


async def test_doctor_tells_of_an_outbox_that_these_settings_do_not_have(
    amqp_url: str, queue: str, sqlite_url: str
) -> None:
    async def events() -> list[dict[str, str]]:
        done = await command("doctor", "--json", amqp_url=amqp_url, queue=queue, database_url=sqlite_url)
        assert done.code == 0
        return [each for each in json.loads(done.out) if each["what"] == "events"]

    await command("topology", "declare", amqp_url=amqp_url, queue=queue)
    assert not await events()
    async with await aio_pika.connect(amqp_url) as connection:
        await Topology(queue, events=True).declare(await connection.channel())
    (found,) = await events()
    assert found["verdict"] == "warning"
    assert f"{queue}.events stands" in found["detail"]
    assert "WORKER_PREFECT_API_URL" in found["advice"]
