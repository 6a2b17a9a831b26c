"""Stores runs in Prefect's own tables, on PostgreSQL or SQLite. Knows no broker."""

from worker.store.errors import StoreError
from worker.store.outcome import Created, Decision, Existing, Outcome, Read, Undecided
from worker.store.store import Store

__all__ = ["Created", "Decision", "Existing", "Outcome", "Read", "Store", "StoreError", "Undecided"]
