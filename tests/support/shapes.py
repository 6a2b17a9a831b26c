"""Requests that become large: themselves, with the rows that they refer to, or in their answers.
For the memory benchmark and the tests of its bound.
"""

import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import httpx
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from worker.contract.kinds import FROM_DEPLOYMENT

MIB = 1024 * 1024
FLOW_ID = str(uuid4())
# The largest value of a variable in Prefect's API, in characters.
VARIABLE_CHARACTERS = 4900


def request(**fields: Any) -> bytes:
    """A create request with these fields."""
    return json.dumps({"flow_id": FLOW_ID} | fields, separators=(",", ":")).encode()


def text(size: int) -> bytes:
    """A request with this many bytes of text."""
    return request(context={"text": "x" * size})


def objects(size: int) -> bytes:
    """A request with this many bytes of small objects, which take the most memory once decoded."""
    return request(context={"objects": [{"a": 1}] * (size // 8)})


def lists(size: int) -> bytes:
    """A request with this many bytes of empty lists."""
    return request(context={"lists": [[]] * (size // 3)})


def labels_of_lists(count: int) -> bytes:
    """A request with this many labels of a wrong type: 70,000 have 970 kB."""
    return request(labels={f"k{number}": [] for number in range(count)})


def wrong(size: int) -> Callable[[int], bytes]:
    """Requests of this many bytes that are refused, each with the next kind of error."""
    long = "x" * (size - 200)
    kinds = (
        request(tags=[1] * (size // 2 - 100)),
        request(labels={f"k{number}": {} for number in range(size // 14)}),
        request(state={"type": long}),
        request(
            state={"type": "PENDING", "state_details": {f"f{number}": 1 for number in range(size // 12)}}
        ),
        request(empirical_policy=[[]] * (size // 3 - 100)),
        request(**{f"unknown{number}": [] for number in range(size // 18)}),
        request(parameters={"text": long}),
        request(context={"text": "\0", "more": long}),
        request(context={"texts": ["\0"] * (size // 10)}),
        request(idempotency_key=long),
        request(name=["é" * 10] * (size // 64)),
        b'{"flow_id": [' + b"[]," * (size // 3 - 100),
        b"[" * (size - 100),
        b'{"flow_id": 1, "context": '
        + b'{"a":' * 400
        + b'"'
        + long[: size - 3000].encode()
        + b'"'
        + b"}" * 401,
        b'"' + long.encode() + b'"',
        b"[" + b"{}," * (size // 3 - 100) + b"{}]",
        b"\xff" * size,
    )
    return lambda number: kinds[number % len(kinds)]


@dataclass(frozen=True)
class Flow:
    """A flow in a database, by its id and name."""

    id: str
    name: str


@dataclass(frozen=True)
class Deployments:
    """Deployments and more in a Prefect server's database.

    Attributes:
        count: how many, called ``NAME/0``, ``NAME/1`` and so on, all of one flow.
        fields: of each, as Prefect's API takes them.
        pools: how many work pools, which the deployments use in turn; 0 for none.
        template: the base job template of each pool.
        variable: the value of the variable ``amplified``.
    """

    count: int
    fields: Mapping[str, Any] = field(default_factory=dict)
    pools: int = 0
    template: Mapping[str, Any] = field(default_factory=dict)
    variable: str = ""

    async def make(self, database_url: str, api: str) -> "Flow":
        """Make the first by the API, and the others as its copies. Returns their flow."""
        name = f"memory-{uuid4().hex[:8]}"
        async with httpx.AsyncClient(base_url=api, timeout=120) as http:

            async def post(path: str, **body: Any) -> Any:
                response = await http.post(path, json=body)
                assert response.is_success, response.text[:1000]
                return response.json()

            flow = (await post("/flows/", name=name))["id"]
            if self.variable:
                found = await http.get("/variables/name/amplified")
                if found.status_code == 404:
                    await post("/variables/", name="amplified", value=self.variable)
            pools = [
                (
                    await post(
                        "/work_pools/", name=f"{name}-{n}", type="process", base_job_template=self.template
                    )
                )
                for n in range(self.pools)
            ]
            theirs = {"work_pool_name": pools[0]["name"]} if pools else {}
            first = (await post("/deployments/", name="0", flow_id=flow, **self.fields, **theirs))["id"]
        async with _connected(database_url) as connection:
            table = await connection.run_sync(_deployment_table)
            sqlite = connection.dialect.name == "sqlite"
            mine = first if sqlite else sa.cast(sa.literal(first), table.c.id.type)
            for number in range(1, self.count):
                id_ = str(uuid4())
                instead: dict[str, Any] = {"id": id_, "name": str(number)}
                if pools:
                    instead["work_queue_id"] = pools[number % len(pools)]["default_queue_id"]
                columns = [
                    sa.cast(sa.literal(instead[each.name], sa.String), each.type)
                    if each.name in instead and not sqlite
                    else sa.literal(instead[each.name])
                    if each.name in instead
                    else each
                    for each in table.columns
                ]
                rows = sa.select(*columns).where(table.c.id == mine)
                await connection.execute(sa.insert(table).from_select([each.name for each in table.c], rows))
        return Flow(flow, name)


@asynccontextmanager
async def _connected(url: str) -> AsyncIterator[AsyncConnection]:
    engine = create_async_engine(url)
    try:
        async with engine.begin() as connection:
            yield connection
    finally:
        await engine.dispose()


def _deployment_table(connection: sa.Connection) -> sa.Table:
    metadata = sa.MetaData()
    return sa.Table("deployment", metadata, autoload_with=connection, resolve_fks=False)


@dataclass(frozen=True)
class Shape:
    """Requests of one kind, perhaps among small ones.

    Attributes:
        what: description.
        body: of the request with this number, from 0.
        count: how many.
        small: how many small ones are mixed in, evenly.
        made_before: requests to answer before the measurement.
        deployments: if set, each request is for a run of one of these, and gets its
            ``deployment_name``.
    """

    what: str
    body: Callable[[int], bytes]
    count: int
    small: int = 0
    made_before: Callable[[int], bytes] | None = None
    deployments: Deployments | None = None

    def requests(self, scale: float, flow: Flow | None = None) -> Iterator[tuple[bytes, str | None]]:
        """All bodies with their types, in publishing order.

        Args:
            flow: the flow of :attr:`deployments`.
        """
        count, small = max(1, int(self.count * scale)), int(self.small * scale)
        for number in range(count):
            if self.deployments is None or flow is None:
                yield self.body(number), None
            else:
                name = f"{flow.name}/{number % self.deployments.count}"
                yield (
                    b'{"deployment_name":"%b",%b' % (name.encode(), self.body(number)[1:]),
                    FROM_DEPLOYMENT.type,
                )
            for _ in range(small * (number + 1) // count - small * number // count):
                yield request(flow_id=FLOW_ID if flow is None else flow.id, context={"text": "x" * 100}), None


def same(body: bytes) -> Callable[[int], bytes]:
    """The same request each time."""
    return lambda _: body


def keyed(**fields: Any) -> Callable[[int], bytes]:
    """Requests with these fields, each with a key of its own."""
    return lambda number: request(idempotency_key=f"key-{number}", **fields)


def _of_deployment(**fields: Any) -> Callable[[int], bytes]:
    return same(json.dumps({"tags": [], **fields}, separators=(",", ":")).encode())


def _values(size: int) -> dict[str, Any]:
    """Parameters of this many bytes: half a text, half small values."""
    return {"text": "x" * (size // 2), "numbers": [[]] * (size // 8)}


def _schema(size: int) -> dict[str, Any]:
    """A schema of this many bytes."""
    properties = {f"p{number}": {"type": "string", "title": f"p {number}"} for number in range(size // 42)}
    return {"type": "object", "properties": properties}


def _template(size: int) -> dict[str, Any]:
    """A base job template of this many bytes."""
    return {"job_configuration": {"command": "{{ p0 }}"}, "variables": _schema(size)}


_KB = 1024
_variable = {"__prefect_kind": "workspace_variable", "variable_name": "amplified"}

# Shapes that take more memory than their requests, in errors and in answers.
BECOMING_LARGE = (
    Shape("70,000 wrong labels, refused", same(labels_of_lists(70_000)), 200, small=2000),
    Shape("1 MB, each with another error", wrong(1_000_000), 200, small=2000),
    Shape(
        "100 bytes, for runs of 900 kB that exist",
        keyed(),
        400,
        small=2000,
        made_before=keyed(context=_values(900_000)),
    ),
)
# Shapes for a database of any kind.
PLAIN = (
    Shape("1 kB of text", same(text(1000)), 20_000),
    Shape("30 kB of text", same(text(30_000)), 3000),
    Shape("30 kB of small objects", same(objects(30_000)), 3000),
    Shape("1 MB of text", same(text(1_000_000)), 1500),
    Shape("900 kB of small objects", same(objects(900_000)), 400),
    Shape("900 kB of empty lists", same(lists(900_000)), 400),
    Shape("1 MB of text, among small ones", same(text(1_000_000)), 200, small=20_000),
    Shape("900 kB of small objects, among small ones", same(objects(900_000)), 100, small=10_000),
    Shape("8 MiB, refused", same(text(8 * MIB)), 300),
    Shape("15 MiB, refused, among small ones", same(text(15 * MIB)), 50, small=5000),
    *BECOMING_LARGE,
)
# Shapes that need a Prefect server's database.
OF_DEPLOYMENTS = (
    Shape(
        "400 deployments of 476 KiB parameters",
        _of_deployment(),
        400,
        small=2000,
        deployments=Deployments(400, {"parameters": _values(476 * _KB)}),
    ),
    Shape(
        "one deployment of 476 KiB parameters",
        _of_deployment(),
        500,
        small=2000,
        deployments=Deployments(1, {"parameters": _values(476 * _KB)}),
    ),
    Shape(
        "335 schemas of 576 KiB",
        _of_deployment(parameters={"p0": "a"}),
        335,
        small=2000,
        deployments=Deployments(
            335, {"parameter_openapi_schema": _schema(576 * _KB), "enforce_parameter_schema": True}
        ),
    ),
    Shape(
        "8 work pools with templates of 300 KiB",
        _of_deployment(job_variables={"p0": "a"}),
        400,
        small=2000,
        deployments=Deployments(400, {}, pools=8, template=_template(300 * _KB)),
    ),
    Shape(
        "variables that amplify 500 kB to 30 MB",
        _of_deployment(parameters={"all": [_variable] * 6300}),
        50,
        small=2000,
        deployments=Deployments(1, {}, variable="v" * VARIABLE_CHARACTERS),
    ),
)
