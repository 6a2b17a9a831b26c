"""Alembic's environment: runs on the connection that it is given, in its transaction."""

from alembic import context

from worker.store.migrations import VERSION_TABLE
from worker.store.tables import metadata

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=metadata, version_table=VERSION_TABLE)
context.run_migrations()
