"""Where runs are kept: Prefect's own tables, on PostgreSQL or SQLite; knows no broker."""

from worker.store.errors import StoreError
from worker.store.insertion import Created, Existing, Outcome
from worker.store.store import Store

__all__ = ["Created", "Existing", "Outcome", "Store", "StoreError"]
