"""Where runs are kept: Prefect's own tables, on PostgreSQL or SQLite; knows no broker."""

from worker.store.opening import StoreError
from worker.store.outcome import Created, Existing, Outcome
from worker.store.store import Store

__all__ = ["Created", "Existing", "Outcome", "Store", "StoreError"]
