"""A fake of the client for producers' tests: a client, the queue, a worker and Prefect's database,
in one process. It has the worker's own rules and models, and no I/O.
"""

try:
    from .client import FakeFlowRunClient as FakeFlowRunClient
    from .sent import SentRequest as SentRequest
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError(
        f"{missing}: the fake needs more than the client. Install 'flow-run-worker-client[testing]'",
        name=missing.name,
    ) from None
