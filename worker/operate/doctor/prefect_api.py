"""The part of ``doctor`` for Prefect's API: does it answer, is the login right, does it accept
events, and does it serve this database.
"""

from collections.abc import AsyncIterator

import sqlalchemy as sa

from worker.contract.errors import Fault
from worker.events.api import APIAway, EventsRefused, PrefectAPI
from worker.operate.doctor.finding import Finding, ok, problem, warning
from worker.settings import Settings
from worker.store import StoreError, migrations
from worker.store.engine import parse_url
from worker.store.prefect import MARKS
from worker.store.tables import flow

_EVENTS_WAIT = "Runs are still made. Their events wait in the outbox."


async def examine_prefect_api(settings: Settings) -> AsyncIterator[Finding]:
    """Examine the API, if there is one. Sends no event."""
    if settings.prefect_api_url is None:
        return
    async with PrefectAPI(settings) as api:
        try:
            version = await api.version()
            # An empty list is checked like any other, including the login and the CSRF token.
            await api.post_events(b"[]")
        except (APIAway, EventsRefused) as error:
            yield problem("Prefect's API", str(error), _EVENTS_WAIT)
            return
        yield ok("Prefect's API", f"Prefect {version} at {settings.prefect_api_url}")
        try:
            yield await _server_of_this_database(api, settings)
        except (APIAway, StoreError, Fault) as error:
            yield warning("Prefect's database", f"can't be compared: {error}")


async def _server_of_this_database(api: PrefectAPI, settings: Settings) -> Finding:
    what = "Prefect's database"
    flow_id = await migrations.with_connection(parse_url(settings.database_url), _any_flow)
    if flow_id is None:
        return ok(what, "has no flow yet to recognise its server by")
    if await api.has(f"/flows/{flow_id}"):
        return ok(what, "the API has a flow of this database: it is its server")
    return problem(
        what,
        f"the API does not know the flow {flow_id} of this database: it is another server's",
        "Point WORKER_PREFECT_API_URL and WORKER_DATABASE_URL at one server and its database.",
    )


def _any_flow(connection: sa.Connection) -> object:
    if not set(sa.inspect(connection).get_table_names()) >= MARKS:
        return None
    return connection.execute(sa.select(flow.c.id).limit(1)).scalar()
