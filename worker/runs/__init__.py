"""Prefect's bookkeeping: from a request to the rows of a run. No I/O."""
