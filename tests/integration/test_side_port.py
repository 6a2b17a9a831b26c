"""Liveness, readiness and metrics, as a probe and a scraper see them."""

import asyncio
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import StartWorker
from tests.support.postgresql import PostgreSQL
from tests.support.processes import free_ports, wait_until
from tests.support.producer import Producer
from tests.support.proxy import Proxy

FLOW_ID = "5d9c3a9e-7e0c-4a4b-8f0a-0c7f3d1f5a11"


def sample(text: str, name: str, **labels: str) -> float | None:
    """One sample of a metrics page."""
    for family in text_string_to_metric_families(text):
        for each in family.samples:
            if each.name == name and each.labels.items() >= labels.items():
                return float(each.value)
    return None


async def test_readiness_follows_the_database_and_liveness_does_not(
    start_worker: StartWorker, producer: Producer
) -> None:
    with PostgreSQL() as cluster:
        worker = start_worker(cluster.create_database())

        def ready() -> tuple[int, Any]:
            response = httpx.get(f"{worker.http}/readyz", timeout=5)
            return response.status_code, response.json()

        assert ready() == (200, {"ready": True, "broker": "ok", "database": "ok"})
        cluster.stop()
        wait_until(lambda: ready()[0] == 503, "unreadiness")  # a result is kept for a second
        _, state = ready()
        assert state["broker"] == "ok"
        assert "PostgreSQL" in state["database"]
        assert httpx.get(f"{worker.http}/livez").status_code == 200
        waiting = await producer.publish({"flow_id": FLOW_ID})
        cluster.start()
        wait_until(lambda: ready()[0] == 200, "readiness")
        (reply,) = await producer.replies_to([waiting])
        assert reply.status == 201
        assert httpx.get(f"{worker.http}/livez").status_code == 200
        assert worker.terminate() == 0


def test_without_a_broker_it_is_alive_and_not_ready(start_worker: StartWorker, sqlite_url: str) -> None:
    (port,) = free_ports(1)
    worker = start_worker(sqlite_url, amqp_url=f"amqp://127.0.0.1:{port}", wait=False)
    worker.wait_until_logged("broker_away")
    response = httpx.get(f"{worker.http}/readyz")
    assert response.status_code == 503
    assert f"127.0.0.1:{port}" in response.json()["broker"]
    assert response.json()["database"] == "ok"
    assert httpx.get(f"{worker.http}/livez").status_code == 200
    assert worker.terminate() == 0


async def test_metrics_count_what_became_of_requests(
    start_worker: StartWorker, producer: Producer, sqlite_url: str
) -> None:
    worker = start_worker(sqlite_url)
    keyed = {"flow_id": FLOW_ID, "idempotency_key": "k"}
    assert [(await producer.request(body)).status for body in (keyed, keyed, {"flow_id": 1})] == [
        201,
        200,
        422,
    ]
    await producer.publish({"flow_id": FLOW_ID}, reply_to="no-such-queue")
    worker.wait_until_logged("reply_unroutable")

    def page() -> str:
        return httpx.get(f"{worker.http}/metrics").text

    wait_until(lambda: sample(page(), "flow_run_worker_in_flight") == 0, "all acknowledged")
    text = page()
    outcomes = {("created", "201"): 2.0, ("existing", "200"): 1.0, ("refused", "422"): 1.0}
    for (outcome, status), count in outcomes.items():
        assert sample(text, "flow_run_worker_requests_total", outcome=outcome, status=status) == count
    assert sample(text, "flow_run_worker_replies_unroutable_total") == 1
    assert sample(text, "flow_run_worker_batch_size_sum") == 3
    for stage in ("decode", "create", "reply"):
        assert (sample(text, "flow_run_worker_stage_seconds_count", stage=stage) or 0) >= 1
    for dependency in ("broker", "database"):
        assert sample(text, "flow_run_worker_dependency_up", dependency=dependency) == 1
    assert sample(text, "flow_run_worker_build_info") == 1
    assert sample(text, "process_resident_memory_bytes")


def test_a_second_worker_on_the_machine_takes_another_port_than_the_usual_one(
    start_worker: StartWorker, sqlite_url: str
) -> None:
    # An empty setting counts as not set. The first worker may find the port taken as well.
    first, second = (start_worker(sqlite_url, http_port="") for _ in range(2))
    assert "http_port_taken" in second.output
    assert second.http != first.http
    assert httpx.get(f"{second.http}/readyz").status_code == 200


def test_a_port_that_was_set_and_is_taken_ends_the_worker(start_worker: StartWorker, sqlite_url: str) -> None:
    """Its probes would reach another process."""
    (port,) = free_ports(1)
    first = start_worker(sqlite_url, http_port=port)
    assert first.http == f"http://127.0.0.1:{port}"
    second = start_worker(sqlite_url, http_port=port, wait=False)
    assert second.process.wait(180) == 1
    assert "cannot_start" in second.output
    assert f"WORKER_HTTP_PORT {port}" in second.output


async def test_an_idle_worker_notices_that_its_database_is_gone_or_silent(start_worker: StartWorker) -> None:
    with PostgreSQL() as cluster:
        async with Proxy([cluster.port]) as network:
            through = cluster.create_database().replace(f":{cluster.port}/", f":{network.port}/")
            worker = await asyncio.to_thread(start_worker, through)

            async def up() -> float | None:
                async with httpx.AsyncClient(timeout=10) as http:
                    page = await http.get(f"{worker.http}/metrics")
                return sample(page.text, "flow_run_worker_dependency_up", dependency="database")

            assert await up() == 1
            network.silence()
            while await up() != 0:  # a result is kept for a second
                await asyncio.sleep(0.2)
            async with httpx.AsyncClient(timeout=10) as http:
                response = await http.get(f"{worker.http}/readyz")
            assert response.status_code == 503
            assert "no answer within 2 seconds" in response.json()["database"]
            network.speak()
            await asyncio.to_thread(cluster.stop)
            while await up() != 0:
                await asyncio.sleep(0.2)
            await asyncio.to_thread(cluster.start)
            while await up() != 1:
                await asyncio.sleep(0.2)
            assert await asyncio.to_thread(worker.terminate) == 0
