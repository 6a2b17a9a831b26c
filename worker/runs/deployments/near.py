"""Finds the name that was meant when a deployment's name is wrong. Pure."""

from collections.abc import Iterable
from difflib import get_close_matches

# In characters. Comparing a name with another one takes some 30 us.
NAME_MAX = 100


def spellings(flow: str) -> frozenset[str]:
    """The names that a flow may have: its own, and that in Prefect's spelling, which has ``-`` in
    place of ``_``.
    """
    return frozenset((flow, flow.replace("_", "-")))


def meant(wrong: str, names: Iterable[str]) -> str:
    """The name that was probably meant, or an empty text.

    Args:
        wrong: ``FLOW NAME/DEPLOYMENT NAME``.
        names: of the deployments of that flow in its spellings.
    """
    near = get_close_matches(wrong, names, n=1) if len(wrong) <= NAME_MAX else ()
    return near[0] if near else ""
