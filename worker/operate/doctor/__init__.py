"""Checks whether a worker with these settings can serve, and gives advice. Changes nothing."""

from collections.abc import AsyncIterator

from worker.operate.doctor.broker import examine_broker
from worker.operate.doctor.database import examine_database
from worker.operate.doctor.finding import Finding, Verdict, warning
from worker.operate.doctor.policies import examine_policies
from worker.operate.doctor.prefect_api import examine_prefect_api
from worker.settings import Settings, unknown_settings

__all__ = ["Finding", "Verdict", "examine"]


async def examine(settings: Settings) -> AsyncIterator[Finding]:
    """Examine the environment, the broker, the database and Prefect's API, one after the other."""
    for name, nearest in unknown_settings():
        advice = f"Did you mean {nearest}?" if nearest else "deploy/docs/settings.md lists the settings."
        yield warning("settings", f"{name} is no setting, and does nothing", advice)
    for part in (examine_broker, examine_policies, examine_database, examine_prefect_api):
        async for finding in part(settings):
            yield finding
