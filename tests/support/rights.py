"""The rights to delete old runs, which no worker needs, and the GRANT statements of a role."""

from collections.abc import Sequence

from worker.store.rights import Right

PRUNE_STANDALONE = (
    Right("SELECT", "flow_run_worker_version"),
    Right("SELECT", "flow_run"),
    Right("DELETE", "flow_run"),
)
PRUNE_PREFECT = (
    Right("SELECT", "alembic_version"),
    *(
        Right(privilege, table)
        for table in ("flow_run", "log", "artifact")
        for privilege in ("SELECT", "DELETE")
    ),
    Right("SELECT", "artifact_collection"),
)


def grants(rights: Sequence[Right], role: str) -> str:
    """The statements that grant a role its rights, one for each privilege."""
    tables: dict[str, list[str]] = {}
    for right in rights:
        kind = f"{right.privilege} ({right.column})" if right.column else right.privilege
        tables.setdefault(kind, []).append(right.table)
    return "".join(f"GRANT {kind} ON {', '.join(names)} TO {role};\n" for kind, names in tables.items())
