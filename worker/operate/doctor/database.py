"""The part of ``doctor`` for the database: does it answer, its kind and revision, the rights, are
commits durable, do the clocks agree.
"""

import asyncio
import os
import shlex
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from worker.contract.errors import DeploymentMissing, Fault
from worker.observability.redaction import redact
from worker.operate.doctor.finding import Finding, Verdict, ok, problem, warning
from worker.operate.doctor.prefect_versions import Dialect, version_at, versions
from worker.settings import Settings
from worker.store import StoreError, migrations
from worker.store.engine import Database, open_database, parse_url
from worker.store.reading import Reader
from worker.store.rights import PREFECT, SECRET, STANDALONE

# Beyond this difference of the clocks, in seconds, the times of a record look out of order.
CLOCK_SECONDS = 1.0

_START_PREFECT = (
    "Start the Prefect server on it, or run 'prefect server database upgrade' there; or set "
    "WORKER_DATABASE_KIND to any or standalone for a database of the worker's own."
)


# A pooler is no problem: the worker then avoids features that poolers lack.
_POOLER = ok(
    "pooler",
    "a pooler such as PgBouncer stands before PostgreSQL; the worker does without prepared statements "
    "and without settings of the session, so a batch takes four round trips instead of one",
    "Point the worker at the server itself where latency counts; or let the pool have two connections "
    "for each worker.",
)


async def examine_database(settings: Settings) -> AsyncIterator[Finding]:
    """Examine the database. Writes nothing and creates nothing."""
    url = parse_url(settings.database_url)
    where = redact(url.render_as_string(hide_password=False))
    postgresql = url.get_backend_name() == "postgresql"
    if not postgresql:
        file = Path(url.database or "")
        there = await asyncio.to_thread(file.exists)
        finding = _file(file, there=there, kind=settings.database_kind)
        yield finding
        if finding.verdict is Verdict.problem or not there:
            return
    try:
        database = await open_database(url)
    except (StoreError, Fault) as error:
        advice = "Start it, or set WORKER_DATABASE_URL to where it is." if isinstance(error, Fault) else ""
        yield problem("database", str(error), advice)
        return
    try:
        schema = await migrations.inspect(database, settings.database_kind)
        yield ok("database", f"{'PostgreSQL' if postgresql else 'SQLite'} at {where}")
        if database.pooler:
            yield _POOLER
        yield _schema(schema, settings, "postgresql" if postgresql else "sqlite")
        if settings.deployment is not None and schema.prefect:
            yield await _deployment(database, schema, settings.deployment)
        if postgresql:
            for finding in await migrations.with_connection(
                database, lambda connection: _postgresql(connection, prefect=schema.prefect)
            ):
                yield finding
    except (StoreError, Fault) as error:
        yield problem("database", str(error))
    finally:
        await database.close()


async def _deployment(database: Database, schema: migrations.Schema, name: str) -> Finding:
    """Whether the deployment of plain messages is there."""
    reader = Reader(database, prefect=True, lacks=schema.lacks)
    if await reader.has_deployment(name):
        return ok("deployment", f"'{name}' is there; each plain message starts a run of it")
    advice = f"Deploy it, or correct WORKER_DEPLOYMENT: 'prefect deployment inspect {shlex.quote(name)}'."
    return problem("deployment", str(DeploymentMissing(name)), advice)


def _file(file: Path, *, there: bool, kind: migrations.Kind) -> Finding:
    if not file.parent.is_dir():
        return problem("database file", f"the folder {file.parent} does not exist", "Create it.")
    # SQLite writes its log next to the file.
    if not os.access(file.parent, os.W_OK) or (there and not os.access(file, os.W_OK)):
        advice = "Let the worker's user write to the file and to its folder, where SQLite keeps its log."
        return problem("database file", f"{file} can't be written to", advice)
    if kind == "prefect" and not there:
        return problem(
            "database file",
            f"{file} is not there yet, and WORKER_DATABASE_KIND demands that of a Prefect server; "
            "a worker waits for it",
            _START_PREFECT,
        )
    return ok("database file", f"{file} {'stands' if there else 'will be made when a worker starts'}")


def _prefects(schema: migrations.Schema, settings: Settings, version: str | None) -> Finding:
    """The finding for a Prefect server's database.

    Args:
        version: the Prefect version of this migration. None if no test has used it.
    """
    known = f" (Prefect {version})" if version else ", which is of no Prefect that the worker was tested with"
    detail = f"a Prefect server's, at its migration {schema.revision}{known}"
    if settings.database_kind == "standalone":
        return problem("schema", detail, "WORKER_DATABASE_KIND demands one of the worker's own.")
    if schema.problems:
        advice = "Use a Prefect version that deploy/docs/prefect.md names. It is left untouched."
        if settings.database_kind == "prefect":
            advice += " If its server is making its tables now, a worker waits for them."
        lacks = f"{detail}; lacks {'; '.join(schema.problems)}"
        return problem("schema", lacks, advice)
    detail += "; has all that the worker writes to, and is never altered"
    if version:
        return ok("schema", detail)
    reference, *older = versions()
    advice = (
        f"The worker answers as Prefect {reference} does, and was tested with the databases of "
        f"{' and '.join(older)} as well. Try a request, and see whether the server shows what the reply "
        "said; or look for a newer worker."
    )
    return warning("schema", detail, advice)


def _schema(schema: migrations.Schema, settings: Settings, dialect: Dialect) -> Finding:
    if schema.prefect:
        return _prefects(schema, settings, version_at(dialect, schema.revision))
    if settings.database_kind == "prefect":
        if schema.problems:
            return problem("schema", "; ".join(schema.problems))
        detail = "Prefect has not made its tables here yet; a worker waits for them"
        return problem("schema", detail, _START_PREFECT)
    if schema.problems:
        return problem("schema", "; ".join(schema.problems), "Give the worker a database of its own.")
    if schema.revision == schema.head:
        return ok("schema", f"the worker's own, at {schema.revision}, up to date")
    detail = (
        f"the worker's own, at {schema.revision}, behind {schema.head}" if schema.revision else "none yet"
    )
    if settings.migrate:
        return ok("schema", f"{detail}; will be brought to {schema.head} at the start")
    return problem("schema", detail, "Run 'flow-run-worker db upgrade', or start with --migrate.")


def _postgresql(connection: sa.Connection, *, prefect: bool) -> list[Finding]:
    def ask(query: str, **values: Any) -> Any:
        return connection.execute(sa.text(query), values).scalar()

    before = datetime.now(UTC)
    theirs: datetime = ask("SELECT clock_timestamp()")
    after = datetime.now(UTC)
    off = max((before - theirs).total_seconds(), (theirs - after).total_seconds(), 0.0)
    milliseconds = (after - before).total_seconds() * 1000
    findings = [ok("round trip", f"{milliseconds:.1f} ms")]
    if off > CLOCK_SECONDS:
        advice = "Keep both by NTP: times of states are taken from the worker's clock."
        findings.append(warning("clock", f"{off:.1f} s apart from the database's", advice))
    else:
        findings.append(ok("clock", f"agrees with the database's (to {milliseconds:.1f} ms)"))
    if ask("SELECT pg_is_in_recovery()"):
        findings.append(problem("writes", "the server is a standby, in recovery", "Point at the primary."))
    for right in PREFECT if prefect else STANDALONE:
        if ask("SELECT to_regclass(:table) IS NOT NULL", table=right.table) and not ask(right.question):
            advice = right.grant(ask("SELECT current_user"))
            detail = f"no {right.where}"
            if right.needed_by:
                refused = f"{detail}: refused are {right.needed_by}"
                findings.append(warning("privileges", refused, advice))
            else:
                findings.append(problem("privileges", detail, advice))
    if secrets := [table for table in SECRET if prefect and _may_read(connection, table)]:
        advice = "Give the worker a role of its own, with the rights of deploy/postgresql/prefect-rights.sql."
        detail = f"may read the secrets of Prefect in {' and '.join(secrets)}, and need not"
        findings.append(warning("privileges", detail, advice))
    if not any(finding.verdict is Verdict.problem for finding in findings):
        findings.append(ok("writes", "may read and insert"))
    unsafe = [
        name for name in ("fsync", "synchronous_commit", "full_page_writes") if ask(f"SHOW {name}") == "off"
    ]
    if unsafe:
        detail = f"{', '.join(unsafe)} off"
        advice = "A crash of the server can lose runs that were answered. Turn it on, unless that is meant."
        findings.append(warning("durability", detail, advice))
    else:
        findings.append(ok("durability", "a commit is on disk before it is answered"))
    return findings


def _may_read(connection: sa.Connection, table: str) -> bool:
    """Whether any column of a table except the id can be read."""
    query = (
        "SELECT count(*) > 0 FROM pg_attribute WHERE attrelid = to_regclass(:table) AND attnum > 0 "
        "AND attname <> 'id' AND has_column_privilege(attrelid, attnum, 'SELECT')"
    )
    return bool(connection.execute(sa.text(query), {"table": table}).scalar())
