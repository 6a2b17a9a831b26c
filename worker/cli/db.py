"""``db``: the database's schema."""

import typer

from worker.cli.options import DatabaseUrl, out, run_async
from worker.settings import load_settings, redact
from worker.store import migrations

db_app = typer.Typer(help="The database's schema.", no_args_is_help=True)


@db_app.command("upgrade")
def db_upgrade(database_url: DatabaseUrl = None) -> None:
    """Create the tables or bring them up to date. Never touches a Prefect server's database."""
    settings = load_settings(database_url=database_url)
    before, after = run_async(migrations.upgrade(settings.database_url, settings.database_kind))
    change = f"already at {after}" if before == after else f"{before or 'empty'} -> {after}"
    out.print(f"{redact(settings.database_url)}: {change}", highlight=False, soft_wrap=True)


@db_app.command("current")
def db_current(database_url: DatabaseUrl = None) -> None:
    """Show which kind of database this is and its schema revision."""
    settings = load_settings(database_url=database_url)
    out.print(
        run_async(migrations.current(settings.database_url, settings.database_kind)),
        highlight=False,
        soft_wrap=True,
    )
