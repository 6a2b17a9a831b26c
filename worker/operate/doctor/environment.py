"""The part of ``doctor`` for the environment: variables with our prefix that are no settings."""

from collections.abc import AsyncIterator

from worker.operate.doctor.finding import Finding, Verdict
from worker.settings import unknown_settings


async def examine_environment() -> AsyncIterator[Finding]:
    """Examine the environment and ``.env``."""
    for name, nearest in unknown_settings():
        advice = f"Did you mean {nearest}?" if nearest else "deploy/docs/settings.md lists the settings."
        yield Finding("settings", Verdict.warning, f"{name} is no setting, and does nothing", advice)
