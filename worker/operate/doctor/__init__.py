"""Checks whether a worker with these settings can serve, and gives advice. Changes nothing."""

from worker.operate.doctor.broker import examine_broker
from worker.operate.doctor.database import examine_database
from worker.operate.doctor.environment import examine_environment
from worker.operate.doctor.finding import Finding, Verdict
from worker.operate.doctor.policies import examine_policies
from worker.operate.doctor.prefect_api import examine_prefect_api

__all__ = [
    "Finding",
    "Verdict",
    "examine_broker",
    "examine_database",
    "examine_environment",
    "examine_policies",
    "examine_prefect_api",
]
