"""Finds the schemas that are plainly valid and cheap to check against, in one walk. All others go
to the separate process.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

# Microseconds of CPU, measured with jsonschema 4.26 and doubled for a slower machine: to apply a
# schema to a value, for each keyword, for each name or value that a keyword lists, and for each
# required name, as a missing one is an error.
NODE = 25.0
KEYWORD = 1.0
LISTED = 0.5
REQUIRED = 10.0
# Microseconds to compare a value with the others of its array.
COMPARED = 8.0
# An error shows the value. Showing this many characters takes as long as applying a schema.
SHOWN = 2000

_TYPES = {"array", "boolean", "integer", "null", "number", "object", "string"}
_TEXTS = {"title", "description", "format", "$comment"}
_FLAGS = {"deprecated", "readOnly", "writeOnly", "uniqueItems"}
_COUNTS = {"maxLength", "minLength", "maxItems", "minItems", "maxProperties", "minProperties"}
_NUMBERS = {"maximum", "exclusiveMaximum", "minimum", "exclusiveMinimum"}
_DEFINITIONS = ("definitions", "$defs")
# Keywords with a cost or an effect that this module does not follow. Unknown names are no keywords
# and cost nothing.
_NOT_FOLLOWED = {
    "$anchor",
    "$dynamicAnchor",
    "$dynamicRef",
    "$id",
    "$recursiveAnchor",
    "$recursiveRef",
    "$schema",
    "$vocabulary",
    "contains",
    "contentEncoding",
    "contentMediaType",
    "contentSchema",
    "dependencies",
    "dependentRequired",
    "dependentSchemas",
    "else",
    "id",
    "if",
    "maxContains",
    "minContains",
    "multipleOf",
    "not",
    "pattern",
    "patternProperties",
    "propertyNames",
    "then",
    "unevaluatedItems",
    "unevaluatedProperties",
}


class NotOrdinary(Exception):
    """The schema is not plainly valid, or its check not plainly cheap."""


@dataclass(frozen=True, slots=True)
class Cost:
    """The most that a check takes, in microseconds.

    Attributes:
        own: for the value itself, without its elements.
        below: for each value inside it.
    """

    own: float
    below: float


def cost_of(schema: Any) -> Cost | None:
    """The cost of checks against a schema. None if it is unknown, or the schema may be invalid."""
    try:
        return Cost(*_Walk(schema).cost(schema))
    except (NotOrdinary, RecursionError):
        return None


def takes_less(cost: Cost, value: Any, microseconds: float) -> bool:
    """Whether a value's check is sure to take less than this time."""
    each_takes = max(cost.below, NODE)
    most = int((microseconds - cost.own) / each_takes)
    values = shown = 0
    pending = [iter((value,))]
    while pending:
        each = next(pending[-1], pending)
        if each is pending:
            pending.pop()
            continue
        values += 1
        if values > most:
            return False
        if isinstance(each, str):
            # The error of each enclosing value shows it as well.
            shown += len(each) * len(pending)
        elif isinstance(each, list):
            pending.append(iter(each))
        elif isinstance(each, dict):
            shown += sum(map(len, islice(each, most))) * len(pending)
            pending.append(iter(each.values()))
    shows = (cost.own + each_takes) * shown / SHOWN
    return cost.own + each_takes * values + shows <= microseconds


class _Walk:
    """Adds up the costs of a schema and its subschemas: for the value itself, and the most for any
    value inside it.
    """

    def __init__(self, root: Any) -> None:
        self._root = root
        self._targets: dict[str, tuple[float, float] | None] = {}

    def cost(self, schema: Any) -> tuple[float, float]:
        if isinstance(schema, bool):
            return NODE, 0.0
        if not isinstance(schema, dict):
            raise NotOrdinary
        own, below, child = NODE, 0.0, 0.0
        for keyword, value in schema.items():
            own += KEYWORD
            if keyword in ("anyOf", "oneOf", "allOf"):
                for each in _list(value, at_least=1):
                    of_each, within = self.cost(each)
                    own += of_each
                    below += within
            elif keyword == "$ref":
                of_target, within = self._target(value)
                own += of_target
                below += within
            elif keyword == "properties":
                own += LISTED * len(_object(value))
                child = max([child, *map(self._either, value.values())])
            elif keyword == "prefixItems":
                child = max([child, *map(self._either, _list(value, at_least=1))])
            elif keyword in ("items", "additionalProperties"):
                child = max(child, self._either(value))
            elif keyword in _DEFINITIONS:
                for each in _object(value).values():
                    self.cost(each)
            elif keyword in _NOT_FOLLOWED:
                raise NotOrdinary
            else:
                own += _plain(keyword, value)
        # ``uniqueItems`` looks at all values inside the array.
        return own, below + child + COMPARED * (schema.get("uniqueItems") is True)

    def _either(self, schema: Any) -> float:
        return max(self.cost(schema))

    def _target(self, reference: Any) -> tuple[float, float]:
        if not isinstance(reference, str):
            raise NotOrdinary
        if reference not in self._targets:
            self._targets[reference] = None
            self._targets[reference] = self.cost(self._resolve(reference))
        found = self._targets[reference]
        if found is None:
            raise NotOrdinary  # it is within itself
        return found

    def _resolve(self, reference: str) -> Any:
        start, _, name = reference.rpartition("/")
        for definitions in _DEFINITIONS:
            if start == f"#/{definitions}" and not {"~", "%"} & set(name):
                found = self._root.get(definitions)
                if isinstance(found, dict) and name in found:
                    return found[name]
        raise NotOrdinary


def _plain(keyword: str, value: Any) -> float:
    """The cost of a keyword without subschemas, or of an unknown one.

    Raises:
        NotOrdinary: the keyword may not have this value.
    """
    listed = 0.0
    if keyword == "type":
        types = value if isinstance(value, list) else [value]
        valid = bool(types) and all(isinstance(each, str) and each in _TYPES for each in types)
        valid = valid and len(set(types)) == len(types)
    elif keyword == "required":
        names = _list(value)
        valid = all(isinstance(each, str) for each in names) and len(set(names)) == len(names)
        listed = REQUIRED * len(names)
    elif keyword == "enum":
        listed = LISTED * _size(_list(value))
        valid = True
    elif keyword == "const":
        listed = LISTED * _size(value)
        valid = True
    elif keyword == "examples":
        valid = isinstance(value, list)
    else:
        check = _FORMS.get(keyword)
        valid = check is None or check(value)
    if not valid:
        raise NotOrdinary
    return listed


_FORMS: Mapping[str, Callable[[Any], bool]] = {
    **dict.fromkeys(_TEXTS, lambda value: isinstance(value, str)),
    **dict.fromkeys(_FLAGS, lambda value: isinstance(value, bool)),
    # True and False are of the type bool, so these don't take them.
    **dict.fromkeys(_COUNTS, lambda value: type(value) is int and value >= 0),
    **dict.fromkeys(_NUMBERS, lambda value: type(value) in (int, float)),
}


def _list(value: Any, *, at_least: int = 0) -> list[Any]:
    if not isinstance(value, list) or len(value) < at_least:
        raise NotOrdinary
    return value


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise NotOrdinary
    return value


def _size(value: Any) -> int:
    """The number of values in a value, plus one for each ten characters."""
    if isinstance(value, str):
        return 1 + len(value) // 10
    if isinstance(value, list):
        return 1 + sum(map(_size, value))
    if isinstance(value, dict):
        return 1 + sum(map(_size, value)) + sum(map(_size, value.values()))
    return 1
