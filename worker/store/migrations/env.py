"""Alembic's environment: runs on the given connection, in its transaction."""

from alembic import context

from worker.store.migrations import VERSION_TABLE

context.configure(connection=context.config.attributes["connection"], version_table=VERSION_TABLE)
context.run_migrations()
