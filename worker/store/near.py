"""Finds the names that were meant when a deployment's name is wrong."""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

from worker.contract.allowed import Allowed
from worker.store.reading import Reader, Unreadable

# At most so many wrong names of a batch are looked at, and names up to so many characters, beside
# so many deployments (``Statements.deployment_names``): comparing a name with another one takes
# some 30 us.
WRONG_MAX = 3
NAME_MAX = 100


async def near_names(
    reader: Reader, wrong: Iterable[tuple[Any, ...]], allowed: Allowed
) -> dict[tuple[Any, ...], str]:
    """The names that were probably meant, by the wrong ones.

    Only deployments of the named flow are looked at: by an index, and without names of others. A
    flow is found in Prefect's spelling too, which has ``-`` in place of ``_``.

    Args:
        wrong: names of a flow and a deployment; ids are passed over.
        allowed: the names that producers may use; others are not told.
    """
    asked = [each for each in wrong if len(each) == 2 and len("/".join(each)) <= NAME_MAX][:WRONG_MAX]
    flows = {spelled for flow, _ in asked for spelled in (flow, flow.replace("_", "-"))}
    try:
        rows = await reader.query(reader.statements.deployment_names, [(each,) for each in flows])
    except Unreadable:
        return {}
    names = [f"{row.flow_name}/{row.name}" for row in rows]
    told = [each for each in names if each in allowed.deployments]
    return {each: near[0] for each in asked if (near := get_close_matches("/".join(each), told, n=1))}
