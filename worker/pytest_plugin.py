"""A pytest plugin with the fixture ``fake_flow_runs``. The client's own distribution registers it.
With the worker's distribution a ``conftest.py`` names it: ``pytest_plugins =
["worker.pytest_plugin"]``.

It imports the client only in a test that has the fixture, since pytest loads it in every run.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .client.testing import FakeFlowRunClient


@pytest.fixture
def fake_flow_runs() -> "Iterator[FakeFlowRunClient]":
    """A fake that answers all clients of this process during the test. It is a client itself."""
    from .client.testing import FakeFlowRunClient

    with FakeFlowRunClient().intercept() as fake:
        yield fake
