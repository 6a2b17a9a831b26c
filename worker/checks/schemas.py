"""Checks against JSON Schemas as Prefect does: Pydantic 1's schemas are mended first, and no
reference is fetched (``prefect.utilities.schema_tools.validation``).
"""

from collections.abc import Container, Iterable
from copy import deepcopy
from typing import Any

from jsonschema import Draft202012Validator, SchemaError, ValidationError
from jsonschema.exceptions import best_match
from jsonschema.protocols import Validator
from jsonschema.validators import extend
from referencing import Registry
from referencing.exceptions import Unresolvable

from .ordinary import NotOrdinary, cost_of
from .remembering import Remembering, can_be_remembered
from .unique import unique_items


class Invalid(Exception):
    """The value does not fit, in Prefect's words."""


class Unusable(Exception):
    """The schema can't be checked against, in Prefect's words."""


CIRCULAR = "Invalid schema: Unable to validate schema with circular references."

# Errors that an invalid schema raises in the library and in the mending.
_BROKEN = (AttributeError, KeyError, TypeError, ValueError)
_UNIQUE = {"uniqueItems": unique_items}
_PLAIN: Any = extend(Draft202012Validator, _UNIQUE)  # type: ignore[no-untyped-call]
_REMEMBERING = Remembering()


class Schema:
    """A prepared schema.

    Args:
        schema: the JSON value, which is changed in place.
        mended: mend it first, as this module's head says.
        none_for_default: when mending, allow null for fields with a default.
        required: whether ``required`` counts.
        given: names that count as present, though the value lacks them.
        ordinary: raise unless the schema is valid and cheap (ordinary).

    Attributes:
        cost: the result of :func:`cost_of`.

    Raises:
        Unusable: the schema is invalid.
        NotOrdinary: the schema is invalid or not ordinary.
    """

    def __init__(
        self,
        schema: Any,
        *,
        mended: bool = True,
        none_for_default: bool = False,
        required: bool = True,
        given: Container[str] = (),
        ordinary: bool = False,
    ) -> None:
        try:
            if mended:
                _mend(schema, none_for_default)
            if not required:
                schema = _without_required(schema)
            elif given and "required" in schema:
                schema["required"] = [name for name in schema["required"] if name not in given]
            self.cost = cost_of(schema)
            if self.cost is None:
                if ordinary:
                    raise NotOrdinary
                Draft202012Validator.check_schema(schema)
        except SchemaError as error:
            raise Unusable(f"Invalid schema: {error.message}") from None
        except RecursionError:
            raise Unusable(CIRCULAR) from None
        except _BROKEN as error:
            raise Unusable(f"Invalid schema: {error}") from None
        kind = _REMEMBERING.validator if self.cost is None and can_be_remembered(schema) else _PLAIN
        arguments: dict[str, Any] = {"registry": Registry()}
        self._validator = kind(schema, **arguments)
        self._with_formats = kind(schema, format_checker=Draft202012Validator.FORMAT_CHECKER, **arguments)

    def check(self, value: Any) -> None:
        """Check a value. Formats, such as a date's, are ignored.

        Raises:
            Invalid: the value does not fit. Has the most telling reason.
            Unusable: the schema refers to itself without end.
        """
        error = self._first(self._validator, value)
        if error is not None:
            path = error.json_path
            field = "" if path == "$" else f" for field {path.replace('$.', '')!r}"
            raise Invalid(f"Validation failed{field}. Failure reason: {error.message}")

    def fits(self, value: Any) -> bool:
        """Whether a value fits, formats included. Other errors are those of :meth:`check`."""
        return self._first(self._with_formats, value) is None

    def _first(self, validator: Validator, value: Any) -> ValidationError | None:
        _REMEMBERING.forget()
        try:
            error: ValidationError | None = best_match(validator.iter_errors(value))
            return error
        except RecursionError:
            raise Unusable(CIRCULAR) from None
        except Unresolvable as error:
            raise Invalid(f"Validation failed. Failure reason: {error}") from None
        except _BROKEN as error:
            raise Unusable(f"Invalid schema: {error}") from None
        except BaseException as error:
            # A RecursionError inside the library's Rust part becomes a panic.
            if type(error).__name__ == "PanicException":
                raise Unusable(CIRCULAR) from None
            raise


def _without_required(schema: Any) -> Any:
    """``remove_nested_keys``."""
    if not isinstance(schema, dict):
        return schema
    return {name: _without_required(each) for name, each in schema.items() if name != "required"}


def _mend(schema: dict[str, Any], none_for_default: bool) -> None:
    """``preprocess_schema``."""
    if "properties" in schema:
        _mend_properties(schema, none_for_default)
    for definition in list(schema.get("definitions", {}).values()):
        if "properties" in definition:
            _mend_properties(definition, none_for_default)
        if "block_type_slug" in definition:
            # A block's id is allowed in place of a block.
            reference = {
                "oneOf": [
                    {"type": "string", "format": "uuid"},
                    {"type": "object", "additionalProperties": {"type": "string"}, "minProperties": 1},
                ]
            }
            by_id = {"type": "object", "properties": {"$ref": reference}, "required": ["$ref"]}
            schema["definitions"][definition["title"]] = {"oneOf": [definition, by_id]}


def _mend_properties(parent: dict[str, Any], none_for_default: bool) -> None:
    """``process_properties``: Pydantic 1 does not say that a field may be null, and writes tuples
    in the form of drafts before 2020-12.
    """
    required: Iterable[str] = parent.get("required", [])
    for name, schema in parent["properties"].items():
        if (
            name not in required
            and "type" in schema
            and schema["type"] != "null"
            and (none_for_default or "default" not in schema)
        ):
            schema["anyOf"] = [{"type": schema.pop("type")}, {"type": "null"}]
        if isinstance(schema.get("items"), list) and schema["items"] and not schema.get("prefixItems"):
            schema["prefixItems"] = deepcopy(schema.pop("items"))
        if "properties" in schema:
            _mend_properties(schema, none_for_default)
