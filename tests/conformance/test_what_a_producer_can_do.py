"""The effects on Prefect that a producer with only a broker user can have: each line of the page of
this name, with its switch off and on.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy.engine import make_url
from yarl import URL

from tests.conformance.shared import PROCESS_TEMPLATE, Both, Shared
from tests.support.producer import Producer, Reply
from tests.support.rabbitmq import RabbitMQ
from tests.support.worker_process import WorkerProcess

pytestmark = pytest.mark.parametrize("shared", ["postgresql"], indirect=True)

PATTERNS = {
    "FLOW_PATTERN": "allowed-.*",
    "DEPLOYMENT_PATTERN": "allowed-.*/(allowed|hushe)",
    "VARIABLE_PATTERN": "public_.*",
    "JOB_VARIABLE_PATTERN": "env",
    "REPLY_TO_PATTERN": r"amq\.gen-.*",
}


@pytest.fixture
def careful(shared: Shared, rabbitmq: RabbitMQ, tmp_path: Path) -> Iterator[str]:
    """The queue of a worker on the same database with all switches on."""
    queue = f"careful-{uuid4().hex[:8]}.create"
    settings = {
        "DATABASE_KIND": "prefect",
        "AMQP_URL": rabbitmq.url,
        "DATABASE_URL": make_url(shared.database_url)
        .set(username="flow_runs_worker")
        .render_as_string(hide_password=False),
        "QUEUE": queue,
        "HTTP_PORT": "0",
        **PATTERNS,
    }
    worker = WorkerProcess(
        tmp_path / "careful.log", {f"WORKER_{name}": value for name, value in settings.items()}
    )
    try:
        worker.wait_until_logged("serving")
        yield queue
        assert worker.terminate() == 0, worker.output
    finally:
        worker.kill()


@pytest.fixture
async def attacker(rabbitmq: RabbitMQ) -> AsyncIterator[str]:
    """A user that may publish, and read replies in its own queue."""
    user, own = f"attacker-{uuid4().hex[:8]}", r"^amq\.gen-.*"
    await asyncio.to_thread(rabbitmq.ctl, "add_user", user, "password")
    await asyncio.to_thread(rabbitmq.ctl, "set_permissions", user, own, rf"{own}|^amq\.default$", own)
    yield str(URL(rabbitmq.url).with_user(user).with_password("password"))
    await asyncio.to_thread(rabbitmq.ctl, "delete_user", user)


@dataclass
class Scene:
    """Objects in Prefect: of each kind, one that is allowed and one that is not."""

    flows: dict[str, str]
    deployments: dict[str, str]
    names: dict[str, str]
    key: str
    variables: dict[str, str]

    @classmethod
    async def at(cls, both: Both) -> "Scene":
        mark, flows, deployments, names, variables = uuid4().hex[:8], {}, {}, {}, {}
        pool = {"name": f"pool-{mark}", "type": "process", "base_job_template": PROCESS_TEMPLATE}
        await both.post("/work_pools/", pool)
        for kind in ("allowed", "secret"):
            flow = await both.post("/flows/", {"name": f"{kind}-{mark}"})
            flows[kind] = flow["id"]
            fields = {"name": kind, "flow_id": flow["id"], "work_pool_name": pool["name"]}
            deployments[kind] = (await both.post("/deployments/", fields))["id"]
            names[kind] = f"{kind}-{mark}/{kind}"
        await both.post("/deployments/", {"name": "hushed", "flow_id": flows["allowed"]})
        for kind, value in (("public", "seen"), ("secret", "hidden")):
            variables[kind] = f"{kind}_{mark}"
            await both.post("/variables/", {"name": variables[kind], "value": value})
        name_in_public = {"name": f"public_name_{mark}", "value": variables["secret"]}
        await both.post("/variables/", name_in_public)
        variables["name"] = name_in_public["name"]
        key = uuid4().hex
        await both.post("/flow_runs/", {"flow_id": flows["secret"], "idempotency_key": key, "name": "theirs"})
        return cls(flows, deployments, names, key, variables)

    def attacks(self) -> dict[str, tuple[bool, dict[str, Any], str]]:
        """Requests by their purpose: whether each is for a deployment, its body, and its switch."""

        def variable(name: Any) -> dict[str, Any]:
            return {"__prefect_kind": "workspace_variable", "variable_name": name}

        secret, fine = self.variables["secret"], self.deployments["allowed"]
        by_name = {"__prefect_kind": "json", "value": json.dumps(secret)}
        placeholder = {"env": {"A": f"{{{{ prefect.variables.{secret} }}}}"}}
        run_of = {"flow_id": self.flows["allowed"]}
        return {
            "run of a flow": (False, {"flow_id": self.flows["secret"]}, "FLOW"),
            "their run by its key": (
                False,
                {"flow_id": self.flows["secret"], "idempotency_key": self.key},
                "FLOW",
            ),
            "flow by its deployment": (True, {"deployment_id": self.deployments["secret"]}, "FLOW"),
            "deployment by name": (True, {"deployment_name": self.names["secret"]}, "FLOW"),
            "deployment of a plain request": (
                False,
                {**run_of, "deployment_id": self.deployments["secret"]},
                "DEPLOYMENT",
            ),
            "variable": (True, {"deployment_id": fine, "parameters": {"p": variable(secret)}}, "VARIABLE"),
            "variable in a list": (
                True,
                {"deployment_id": fine, "parameters": {"p": [{"q": variable(secret)}]}},
                "VARIABLE",
            ),
            "variable by a variable": (
                True,
                {"deployment_id": fine, "parameters": {"p": variable(variable(self.variables["name"]))}},
                "VARIABLE",
            ),
            "variable by JSON": (
                True,
                {"deployment_id": fine, "parameters": {"p": variable(by_name)}},
                "VARIABLE",
            ),
            "variable of job variables": (False, {**run_of, "job_variables": placeholder}, "VARIABLE"),
            "command": (True, {"deployment_id": fine, "job_variables": {"command": "id"}}, "JOB_VARIABLE"),
            "command of a plain request": (
                False,
                {**run_of, "job_variables": {"command": "id"}},
                "JOB_VARIABLE",
            ),
        }

    def fine(self) -> list[tuple[bool, dict[str, Any]]]:
        """Requests that no switch stops."""
        public = {"__prefect_kind": "workspace_variable", "variable_name": self.variables["public"]}
        deployment, flow = self.deployments["allowed"], self.flows["allowed"]
        env = {"env": {"A": f"{{{{ prefect.variables.{self.variables['public']} }}}}"}}
        return [
            (False, {"flow_id": flow, "deployment_id": deployment, "job_variables": env}),
            (True, {"deployment_id": deployment, "parameters": {"p": public}, "job_variables": env}),
            (True, {"deployment_name": self.names["allowed"]}),
        ]


@pytest.fixture
async def scene(shared: Shared, amqp_url: str) -> AsyncIterator[Scene]:
    async with Both.at(shared, amqp_url) as both:
        yield await Scene.at(both)


@pytest.fixture
async def at_open(shared: Shared, attacker: str) -> AsyncIterator[Producer]:
    """The attacker at the worker with all switches off."""
    async with Producer(attacker, shared.queue) as producer:
        yield producer


@pytest.fixture
async def at_careful(careful: str, attacker: str) -> AsyncIterator[Producer]:
    """The attacker at the worker with all switches on."""
    async with Producer(attacker, careful) as producer:
        yield producer


async def send(producer: Producer, of_deployment: bool, body: dict[str, Any]) -> Reply:
    kind = {"type": "create_flow_run_from_deployment"} if of_deployment else {}
    return await producer.request(body, **kind)


async def test_each_attack_works_without_its_switch_and_fails_with_it(
    scene: Scene, at_open: Producer, at_careful: Producer
) -> None:
    for name, (of_deployment, body, switch) in scene.attacks().items():
        assert (await send(at_open, of_deployment, body)).status in (200, 201), name
        refused = await send(at_careful, of_deployment, body)
        assert refused.status == 400, name
        assert f"WORKER_{switch}_PATTERN" in refused.headers["x-error"], name
        assert "hidden" not in json.dumps(refused.body), name
        assert "theirs" not in json.dumps(refused.body), name
    for of_deployment, body in scene.fine():
        reply = await send(at_careful, of_deployment, body)
        assert reply.status == 201, reply.body
    assert reply.body["parameters"] == {}


async def test_a_wrong_name_shows_only_names_that_the_switch_allows(
    scene: Scene, at_open: Producer, at_careful: Producer
) -> None:
    near = scene.names["allowed"].replace("/allowed", "/hushe")
    reasons = []
    for producer in (at_open, at_careful):
        reply = await send(producer, True, {"deployment_name": near})
        assert (reply.status, reply.body) == (404, {"detail": "Deployment not found"})
        reasons.append(reply.headers["x-error"])
    assert f"'{near}d'" in reasons[0]
    assert f"'{near}d'" not in reasons[1]


async def test_no_queue_of_workers_gets_a_reply(
    shared: Shared, amqp_url: str, careful: str, attacker: str
) -> None:
    """This covers the worker's own queues and another worker's, with the switch off and on."""
    queues = [f"{queue}{suffix}" for queue in (shared.queue, careful) for suffix in (".dead", "")]
    async with Both.at(shared, amqp_url) as both:
        flow = (await both.post("/flows/", {"name": f"allowed-{uuid4()}"}))["id"]
        for queue in (shared.queue, careful):
            other = careful if queue == shared.queue else shared.queue
            async with Producer(attacker, queue) as producer, Producer(amqp_url, queue) as owner:
                # Other tests leave dead letters in the shared queue.
                await (await owner.channel.get_queue(f"{queue}.dead")).purge()
                for name in (
                    queue,
                    f"{queue}.dead",
                    f"/queue/{queue}.dead",
                    f"{other}.dead",
                    f"{other}.events",
                ):
                    before = {each: await owner.depth(each) for each in queues}
                    await producer.publish({"flow_id": flow}, reply_to=name)
                    (letter,) = await owner.dead_letters(1)
                    assert "Replies are not sent" in letter.headers["x-error"]
                    after = {each: await owner.depth(each) for each in queues}
                    assert after == before
