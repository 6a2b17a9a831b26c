"""The rights that a worker's role needs in PostgreSQL, with the reason for each. ``doctor``,
refusals and ``deploy/postgresql`` follow this list. Knows no connection.
"""

import re

from worker.contract.immutable import immutable


@immutable
class Right:
    """A right on a table.

    Attributes:
        privilege: such as ``SELECT``.
        column: the one column that it covers; None for the whole table.
        needed_by: the requests that are refused without it; empty if all would fail.
    """

    privilege: str
    table: str
    column: str | None = None
    needed_by: str = ""

    @property
    def where(self) -> str:
        """The privilege on the table, in GRANT's syntax."""
        column = f" ({self.column})" if self.column else ""
        return f"{self.privilege}{column} ON {self.table}"

    def grant(self, role: str) -> str:
        """The statement that grants this right to a role."""
        return f'GRANT {self.where} TO "{role}";'

    @property
    def question(self) -> str:
        """The query that asks whether the current user has this right."""
        if self.column:
            return f"SELECT has_column_privilege('{self.table}', '{self.column}', '{self.privilege}')"
        return f"SELECT has_table_privilege('{self.table}', '{self.privilege}')"


_RUNS = tuple(
    Right(privilege, table) for table in ("flow_run", "flow_run_state") for privilege in ("SELECT", "INSERT")
)
_DEPLOYMENTS = "runs of deployments"
_QUEUES = "requests that name a work pool, and runs of deployments"
_SUBFLOWS = "subflows, which have a parent_task_run_id"

# In a database of the worker's own.
STANDALONE = (Right("SELECT", "flow_run_worker_version"), *_RUNS)
# In a Prefect server's database. The table of configuration is left out, since it has the key of
# the secrets. Blocks have the secrets, so only their ids are read.
PREFECT = (
    Right("SELECT", "alembic_version"),
    *_RUNS,
    Right("SELECT", "flow"),
    Right("SELECT", "deployment", needed_by=_DEPLOYMENTS),
    Right("SELECT", "work_pool", needed_by=_QUEUES),
    Right("SELECT", "work_queue", needed_by=_QUEUES),
    Right("INSERT", "work_queue", needed_by="requests that name a work queue which is not there yet"),
    Right("SELECT", "variable", needed_by="parameters that are filled in from workspace variables"),
    Right("SELECT", "block_document", "id", "infrastructure documents, and pools that refer to blocks"),
    Right("SELECT", "artifact", needed_by="requests for a run that is there already"),
    Right("SELECT", "task_run", needed_by=_SUBFLOWS),
    Right("UPDATE", "task_run", needed_by=_SUBFLOWS),
    Right("INSERT", "task_run_state", needed_by=_SUBFLOWS),
)
# Tables with Prefect's secrets: the encryption key, and the encrypted data.
SECRET = ("configuration", "block_document")


def mended(error: str) -> str:
    """The GRANT statements that mend PostgreSQL's ``permission denied for table …``."""
    words = set(re.findall(r"\w+", error))
    wanted = [right.grant("WORKER") for right in PREFECT if right.table in words]
    return " ".join(wanted) or "'flow-run-worker doctor' says more."
