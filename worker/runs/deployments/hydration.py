"""Parameters that say how to get their value: ``{"__prefect_kind": "json", "value": "[1]"}`` is the
list (``prefect.utilities.schema_tools.hydration``).
"""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from worker.checks.jobs import Verdict
from worker.contract.allowed import Names
from worker.contract.decode import MAX_DEPTH, depth_exceeds
from worker.contract.encoding import dumps
from worker.contract.errors import HydrationRefused, ParametersTooLarge
from worker.contract.request import NO_LIMIT
from worker.contract.validation import unstorable

KIND = "__prefect_kind"

# What marks a template, or begins a comment in one. Text without is what Prefect makes of it.
_TEMPLATE_MARKS = ("{{", "{%", "{#")
_TOO_DEEP = "They are nested too deep."
# Values that have others in them. There may be hundreds of thousands of others: no call for each.
_NESTED = frozenset((dict, list))
# Stands for a value that is left out of the object or list that it is in.
_LEFT_OUT = object()

Variables = Mapping[str, Any]
Render = Callable[[Any], Verdict]


class Given(NamedTuple):
    """What values are made of; see :func:`hydrate`."""

    variables: Variables
    render: Render


class UnknownVariable(HydrationRefused):
    """There is no workspace variable of this name."""

    def __init__(self, name: Any) -> None:
        super().__init__(f"Variable '{name}' not found in workspace.")


def hydrate(
    parameters: dict[str, Any], variables: Variables, render: Render, max_size: int = NO_LIMIT
) -> dict[str, Any]:
    """Parameters with the values that they stand for.

    Args:
        variables: the workspace variables by name, as far as these parameters need them.
        render: gives the text of a jinja template.
        max_size: of the values of variables in them, as JSON in bytes; :data:`NO_LIMIT`.

    Raises:
        HydrationRefused: a value can't be had, or can't be stored.
        ParametersTooLarge: these values are larger.
        Exception: what ``render`` raises.
    """
    if not _has_kind(parameters):
        return parameters
    if max_size != NO_LIMIT:
        variables = _Bounded(variables, max_size)
    try:
        hydrated = _hydrated(parameters, Given(variables, render))
    except RecursionError:
        raise HydrationRefused(_TOO_DEEP) from None
    if hydrated is _LEFT_OUT:
        return {}
    if not isinstance(hydrated, dict):
        raise HydrationRefused("They are not an object.")
    # What was read out of a text has not been looked at yet.
    if depth_exceeds(hydrated, MAX_DEPTH):
        raise HydrationRefused(_TOO_DEEP)
    for error in unstorable(hydrated):
        raise HydrationRefused(f"{'.'.join(map(str, error['loc'][1:]))}: {error['msg']}")
    return hydrated


def variable_names(
    parameters: dict[str, Any], known: Variables, render: Render, max_size: int = NO_LIMIT
) -> set[str]:
    """Workspace variables that parameters need, besides those that are known.

    A name may be in another variable, so ask again once these are known.

    Raises:
        Exception: what ``render`` raises.
    """
    asked = _Asked(known)
    with contextlib.suppress(HydrationRefused, ParametersTooLarge):
        hydrate(parameters, asked, render, max_size)
    return asked.names


def check_variables(parameters: dict[str, Any], variables: Variables, allowed: Names, render: Render) -> None:
    """Raise NotAllowed over a variable that these parameters may not name, and what :func:`hydrate`
    raises.

    Args:
        variables, render: as of :func:`hydrate`.
    """
    hydrate(parameters, _Allowed(variables, allowed), render)


class _Allowed(dict[str, Any]):
    """Variables, of which some must not be asked for, be they there or not."""

    def __init__(self, variables: Variables, allowed: Names) -> None:
        super().__init__()
        self._variables = variables
        self._allowed = allowed

    def __missing__(self, name: str) -> Any:
        self._allowed.check("variable", name)
        return self._variables[name]


class _Asked(dict[str, Any]):
    """Variables; notes the names of those that it has not got."""

    def __init__(self, known: Variables) -> None:
        super().__init__(known)
        self.names: set[str] = set()

    def __missing__(self, name: str) -> None:
        self.names.add(name)


class _Bounded(Mapping[str, Any]):
    """Variables whose values may be taken until they are too large. They are shared by all places
    that name them, so that they are measured before anything is written out.
    """

    def __init__(self, variables: Variables, max_size: int) -> None:
        self._variables, self._max_size = variables, max_size
        self._taken = 0
        self._sizes: dict[str, int] = {}

    def __getitem__(self, name: str) -> Any:
        value = self._variables[name]
        if name not in self._sizes:
            self._sizes[name] = len(dumps(value))
        self._taken += self._sizes[name]
        if self._taken > self._max_size:
            raise ParametersTooLarge(self._max_size)
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._variables)

    def __len__(self) -> int:
        return len(self._variables)


def _has_kind(parameters: dict[str, Any]) -> bool:
    pending: list[Any] = [parameters]
    while pending:
        each = pending.pop()
        if type(each) is dict:
            if KIND in each:
                return True
            each = each.values()
        pending += [inner for inner in each if inner and type(inner) in _NESTED]
    return False


def _hydrated(value: Any, given: Given) -> Any:
    if isinstance(value, dict):
        if KIND in value:
            kind = value[KIND]
            read = _KINDS.get(kind) if isinstance(kind, str) else None
            return value.get("value") if read is None else read(value, given)
        return {
            name: hydrated
            for name, each in value.items()
            if (hydrated := _hydrated(each, given) if each and type(each) in _NESTED else each)
            is not _LEFT_OUT
        }
    if isinstance(value, list):
        return [
            hydrated
            for each in value
            if (hydrated := _hydrated(each, given) if each and type(each) in _NESTED else each)
            is not _LEFT_OUT
        ]
    return value


def _inner(value: Any, given: Given) -> Any:
    """What a kind is made of may be of a kind itself."""
    return _hydrated(value, given) if isinstance(value, dict) else value


def _none(value: dict[str, Any], given: Given) -> Any:
    if "value" not in value:
        raise HydrationRefused("Missing 'value' key in __prefect object")
    return _hydrated(value["value"], given)


def _json(value: dict[str, Any], given: Given) -> Any:
    if "value" not in value:
        return _LEFT_OUT
    text = _inner(value["value"], given)
    if not isinstance(text, str):
        return text
    try:
        return json.loads(text)
    except RecursionError:
        raise HydrationRefused(_TOO_DEEP) from None
    except ValueError as error:
        raise HydrationRefused(f"Invalid JSON: {error}") from None


def _variable(value: dict[str, Any], given: Given) -> Any:
    if "variable_name" not in value:
        return _LEFT_OUT
    name = _inner(value["variable_name"], given)
    if name is _LEFT_OUT:
        return name
    # A name that no database stores is not asked for: the query would fail for all.
    if not isinstance(name, str) or unstorable([name]):
        raise UnknownVariable(name)
    try:
        return given.variables[name]
    except KeyError:
        raise UnknownVariable(name) from None


def _jinja(value: dict[str, Any], given: Given) -> Any:
    if "template" not in value:
        raise HydrationRefused("Missing 'template' key in __prefect object")
    template = _inner(value["template"], given)
    if template is _LEFT_OUT:
        return template
    # As Prefect does, take a list or an object as it is, where no text in it may be a template. To
    # another value Prefect answers 500.
    text = str(template) if isinstance(template, (dict, list)) else template
    if isinstance(text, str) and not any(mark in text for mark in _TEMPLATE_MARKS):
        return template
    if not isinstance(template, str):
        raise HydrationRefused("Invalid jinja: the template is no text.")
    found = given.render(template)
    if found.outcome == "costly":
        raise HydrationRefused(f"Invalid jinja: {found.message}")
    if found.outcome != "text":
        raise HydrationRefused(found.message)
    return found.message


_KINDS: dict[str, Callable[[dict[str, Any], Given], Any]] = {
    "none": _none,
    "json": _json,
    "workspace_variable": _variable,
    "jinja": _jinja,
}
