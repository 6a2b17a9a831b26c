"""Evaluates parameters that describe their value: ``{"__prefect_kind": "json", "value": "[1]"}``
becomes a list (``prefect.utilities.schema_tools.hydration``).
"""

import contextlib
import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ...checks.jobs import Verdict
from ...contract.allowed import Names
from ...contract.decode import KIND, MAX_DEPTH, depth_exceeds
from ...contract.encoding import dumps
from ...contract.errors import HydrationRefused, ParametersTooLarge
from ...contract.request import NO_LIMIT
from ...contract.validation import unstorable

# Marks of a jinja template or its comment. Text without any renders to itself.
_TEMPLATE_MARKS = ("{{", "{%", "{#")
_TOO_DEEP = "They are nested too deep."
# Types with values inside. There may be hundreds of thousands of plain values: no call for those.
_NESTED = frozenset((dict, list))
# Stands for a value that is left out of its object or list.
_LEFT_OUT = object()

Variables = Mapping[str, Any]
Render = Callable[[Any], Verdict]


class Given(NamedTuple):
    """The sources of values; see :func:`hydrate`."""

    variables: Variables
    render: Render


class UnknownVariable(HydrationRefused):
    """There is no workspace variable of this name."""

    def __init__(self, name: Any) -> None:
        super().__init__(f"Variable '{name}' not found in workspace.")


def hydrate(
    parameters: dict[str, Any], variables: Variables, render: Render, max_size: int = NO_LIMIT
) -> dict[str, Any]:
    """Replace each described value in parameters by the value.

    Args:
        variables: the workspace variables that these parameters need, by name.
        render: renders a jinja template.
        max_size: limit for all values of variables together, in bytes of JSON; or :data:`NO_LIMIT`.

    Raises:
        HydrationRefused: a value can't be made, or can't be stored.
        ParametersTooLarge: the variables' values exceed ``max_size``.
        Exception: as ``render`` raises.
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
    # Values that were parsed from JSON text have not been checked yet.
    if depth_exceeds(hydrated, MAX_DEPTH):
        raise HydrationRefused(_TOO_DEEP)
    for error in unstorable(hydrated):
        raise HydrationRefused(f"{'.'.join(map(str, error['loc'][1:]))}: {error['msg']}")
    return hydrated


def variable_names(
    parameters: dict[str, Any], known: Variables, render: Render, max_size: int = NO_LIMIT
) -> set[str]:
    """The names of the workspace variables that parameters need besides the known ones.

    A variable's value may name another variable, so call this again once these are known.

    Raises:
        Exception: as ``render`` raises.
    """
    asked = _Asked(known)
    bounded = asked if max_size == NO_LIMIT else _Bounded(asked, max_size)
    with contextlib.suppress(HydrationRefused, ParametersTooLarge, RecursionError):
        _hydrated(parameters, Given(bounded, render))
    return asked.names


def check_variables(parameters: dict[str, Any], variables: Variables, allowed: Names, render: Render) -> None:
    """Raise NotAllowed if these parameters name a variable that they may not. Raises as
    :func:`hydrate` does, too.

    Args:
        variables, render: as for :func:`hydrate`.
    """
    hydrate(parameters, _Allowed(variables, allowed), render)


class _Allowed(dict[str, Any]):
    """Variables that refuse forbidden names, whether these exist or not."""

    def __init__(self, variables: Variables, allowed: Names) -> None:
        super().__init__()
        self._variables = variables
        self._allowed = allowed

    def __missing__(self, name: str) -> Any:
        self._allowed.check("variable", name)
        return self._variables[name]


class _Asked(dict[str, Any]):
    """Known variables. Notes the names of the others."""

    def __init__(self, known: Variables) -> None:
        super().__init__(known)
        self.names: set[str] = set()

    def __missing__(self, name: str) -> None:
        self.names.add(name)


class _Bounded(dict[str, Any]):
    """Variables with a limit on the bytes of all values read. One value may stand in many places,
    which counts each time, before anything is written out.
    """

    def __init__(self, variables: Variables, max_size: int) -> None:
        super().__init__()
        self._variables, self._max_size = variables, max_size
        self._taken = 0
        self._sizes: dict[str, int] = {}

    def __missing__(self, name: str) -> Any:
        value = self._variables[name]
        if name not in self._sizes:
            self._sizes[name] = len(dumps(value))
        self._taken += self._sizes[name]
        if self._taken > self._max_size:
            raise ParametersTooLarge(self._max_size)
        return value


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
    """Hydrate the inner value of a kind, which may be a kind itself."""
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
    # Don't look up a name that no database can store: the query would fail for all requests.
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
    # As in Prefect, a list or an object without any template mark stays as it is. For any other
    # value Prefect answers 500.
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
