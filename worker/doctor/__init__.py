"""Examines what a worker with these settings would meet, and says what to do about it. Changes
nothing.
"""

from worker.doctor.broker import examine_broker
from worker.doctor.database import examine_database
from worker.doctor.environment import examine_environment
from worker.doctor.finding import Finding, Verdict
from worker.doctor.policies import examine_policies
from worker.doctor.prefect_api import examine_prefect_api

__all__ = [
    "Finding",
    "Verdict",
    "examine_broker",
    "examine_database",
    "examine_environment",
    "examine_policies",
    "examine_prefect_api",
]
