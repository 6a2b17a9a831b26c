"""Which requests of a batch lead, and the results of the others."""

from tests.support.requests import keyed
from worker.contract.errors import Unprocessable, WorkPoolNotFound
from worker.store import Created, Existing
from worker.store.store import _Batch


def test_a_follower_that_is_refused_by_itself_is_refused_though_its_leader_is_created() -> None:
    first, second, third = runs = keyed(["k", "k", "k"])
    refusal = WorkPoolNotFound("no")
    batch = _Batch(runs, {second.run.id: refusal})
    assert batch.leaders() == [first]
    batch.settle({first.run.id: Created(first.run)})
    assert batch.leaders() == []
    assert batch.outcomes() == [Created(first.run), refusal, Existing(first.run)]
    assert third.run.id != first.run.id


def test_the_next_leads_where_a_leader_is_refused() -> None:
    first, second = runs = keyed(["k", "k"])
    batch = _Batch(runs, {})
    refusal = Unprocessable()
    batch.settle({first.run.id: refusal})
    assert batch.leaders() == [second]
    batch.settle({second.run.id: Created(second.run)})
    assert batch.outcomes() == [refusal, Created(second.run)]


def test_what_vanished_leads_again() -> None:
    (only,) = runs = keyed(["k"])
    batch = _Batch(runs, {})
    batch.settle({})
    assert batch.leaders() == [only]
