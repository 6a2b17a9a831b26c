"""Finds the names that were meant when a deployment's name is wrong."""

from collections.abc import Iterable
from typing import Any

from worker.contract.allowed import Allowed
from worker.runs.deployments.near import NAME_MAX, meant, spellings
from worker.store.reading import Reader, Unreadable

# Most wrong names of a batch to look at. ``Statements.deployment_names`` limits the deployments.
WRONG_MAX = 3


async def near_names(
    reader: Reader, wrong: Iterable[tuple[Any, ...]], allowed: Allowed
) -> dict[tuple[Any, ...], str]:
    """The names that were probably meant, by the wrong ones.

    Only deployments of the named flow are looked at: by an index, and without names of others.

    Args:
        wrong: names of a flow and a deployment; ids are passed over.
        allowed: the names that producers may use; others are not told.
    """
    asked = [each for each in wrong if len(each) == 2 and len("/".join(each)) <= NAME_MAX][:WRONG_MAX]
    flows = {spelled for flow, _ in asked for spelled in spellings(flow)}
    try:
        rows = await reader.query(reader.statements.deployment_names, [(each,) for each in flows])
    except Unreadable:
        return {}
    names = [f"{row.flow_name}/{row.name}" for row in rows]
    told = [each for each in names if each in allowed.deployments]
    return {each: near for each in asked if (near := meant("/".join(each), told))}
