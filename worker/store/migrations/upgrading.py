"""Runs the migrations. A module of its own, since importing Alembic takes a tenth of a second, and
most starts find the schema up to date.
"""

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy.engine import Connection


def run_migrations(connection: Connection) -> None:
    """Bring the schema up to date, in the connection's transaction."""
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(Path(__file__).parent))
    command.upgrade(config, "head")
