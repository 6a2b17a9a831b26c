"""A jsonschema validator that checks each value once for each schema. The library's own doubles its
time with each level of a tree whose types differ by ``anyOf``.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from jsonschema import Draft202012Validator, ValidationError
from jsonschema.validators import extend

from .unique import unique_items

# Keywords that make a subschema's meaning depend on its referrer or on another dialect.
_SCOPED = {"$anchor", "$dynamicAnchor", "$dynamicRef", "$id", "$recursiveRef", "$schema"}
# Keywords whose schemas apply to the same value as the enclosing schema.
_IN_PLACE = ("if", "then", "else", "not")
_IN_PLACE_LISTS = ("allOf", "anyOf", "oneOf")
# Most verdicts to remember: at some 250 bytes each they take 25 MB. Beyond it all are forgotten.
REMEMBERED = 100_000

_Errors = Iterator[ValidationError]


class _Undecided(ValidationError):
    """The error of an ``anyOf`` or a ``oneOf``. It finds the errors of the alternatives on demand:
    only the most telling error is ever read.
    """

    def __init__(self, message: str, reasons: Callable[[], list[ValidationError]]) -> None:
        self._reasons: Callable[[], list[ValidationError]] | None = reasons
        self._found: list[ValidationError] = []
        super().__init__(message)

    @property
    def context(self) -> list[ValidationError]:  # an attribute in the library
        if self._reasons is not None:
            reasons, self._reasons = self._reasons, None
            self._found = reasons()
            for each in self._found:
                each.parent = self
        return self._found

    @context.setter
    def context(self, _: Iterable[ValidationError]) -> None:
        """Ignore the value that the library's constructor sets."""


class Remembering:
    """Makes validators that remember their verdicts on lists and objects during one check. For
    schemas that :func:`can_be_remembered` allows.

    Errors and their order are the library's. Each replaced function uses as many frames as the
    library's, so that nesting is refused at the same depth.

    Call :meth:`forget` before each check: verdicts are kept by the values' addresses.
    """

    def __init__(self) -> None:
        self._fits: dict[tuple[Any, int], bool] = {}
        self.validator: Any = extend(  # type: ignore[no-untyped-call]
            Draft202012Validator,
            {
                "$ref": self._ref,
                "allOf": self._all_of,
                "anyOf": self._any_of,
                "if": self._if,
                "not": self._not,
                "oneOf": self._one_of,
                "uniqueItems": unique_items,
            },
        )

    def forget(self) -> None:
        """Begin another check."""
        self._fits.clear()

    def _note(self, schema: Any, instance: Any, fits: bool) -> bool:
        if instance and isinstance(instance, (dict, list)):
            if len(self._fits) >= REMEMBERED:
                self._fits.clear()
            self._fits[schema, id(instance)] = fits
        return fits

    def _ref(self, validator: Any, ref: str, instance: Any, schema: Any) -> _Errors:
        if self._fits.get((ref, id(instance))):
            return
        fits = True
        for error in validator._validate_reference(ref=ref, instance=instance):
            fits = False
            yield error
        self._note(ref, instance, fits)

    def _all_of(self, validator: Any, all_of: list[Any], instance: Any, schema: Any) -> _Errors:
        for index, each in enumerate(all_of):
            if self._fits.get((id(each), id(instance))):
                continue
            fits = True
            for error in validator.descend(instance, each, schema_path=index):
                fits = False
                yield error
            self._note(id(each), instance, fits)

    def _any_of(self, validator: Any, any_of: list[Any], instance: Any, schema: Any) -> _Errors:
        for each in any_of:
            fits = self._fits.get((id(each), id(instance)))
            if fits is None:
                fits = next(validator.descend(instance, each), None) is None
                self._note(id(each), instance, fits)
            if fits:
                return
        yield _none_fits(validator, any_of, instance)

    def _one_of(self, validator: Any, one_of: list[Any], instance: Any, schema: Any) -> _Errors:
        alternatives = iter(one_of)
        for each in alternatives:
            fits = self._fits.get((id(each), id(instance)))
            if fits is None:
                fits = next(validator.descend(instance, each), None) is None
                self._note(id(each), instance, fits)
            if fits:
                first = each
                break
        else:
            yield _none_fits(validator, one_of, instance)
            return
        if more := [each for each in alternatives if self._valid(validator, each, instance)]:
            reprs = ", ".join(map(repr, (*more, first)))
            yield ValidationError(f"{instance!r} is valid under each of {reprs}")

    def _not(self, validator: Any, unwanted: Any, instance: Any, schema: Any) -> _Errors:
        if self._valid(validator, unwanted, instance):
            yield ValidationError(f"{instance!r} should not be valid under {unwanted!r}")

    def _if(self, validator: Any, condition: Any, instance: Any, schema: Any) -> _Errors:
        keyword = "then" if self._valid(validator, condition, instance) else "else"
        if keyword in schema:
            yield from validator.descend(instance, schema[keyword], schema_path=keyword)

    def _valid(self, validator: Any, schema: Any, instance: Any) -> bool:
        fits = self._fits.get((id(schema), id(instance)))
        if fits is None:
            fits = next(validator.descend(instance, schema), None) is None
            self._note(id(schema), instance, fits)
        return fits


def _none_fits(validator: Any, schemas: list[Any], instance: Any) -> ValidationError:
    def reasons() -> list[ValidationError]:
        return [
            error
            for index, each in enumerate(schemas)
            for error in validator.descend(instance, each, schema_path=index)
        ]

    return _Undecided(f"{instance!r} is not valid under any of the given schemas", reasons)


def can_be_remembered(root: Any) -> bool:
    """Whether remembered verdicts are safe for this schema: each reference has a target in it, and
    none leads back to itself for the same value.
    """
    for each in _schemas(root):
        reference = each.get("$ref")
        if not _SCOPED.isdisjoint(each) or (isinstance(reference, str) and _target(root, reference) is None):
            return False
    return not _leads_back(root)


def _target(root: Any, reference: str) -> Any:
    """The schema at a pointer of plain names, or None."""
    first, *names = reference.split("/")
    if first != "#" or "~" in reference or "%" in reference:
        return None
    found = root
    for name in names:
        found = found.get(name) if isinstance(found, dict) else None
    return found


def _leads_back(root: dict[str, Any]) -> bool:
    """Whether some schema leads, in any way, to itself for the same value."""
    done: set[int] = set()
    within: set[int] = set()
    # Each schema comes twice: to enter it, and to leave it.
    pending: list[tuple[Any, bool]] = [(each, True) for each in _schemas(root)]
    while pending:
        schema, entered = pending.pop()
        if not isinstance(schema, dict):
            continue
        if not entered:
            within.discard(id(schema))
            done.add(id(schema))
        elif id(schema) in within:
            return True
        elif id(schema) not in done:
            within.add(id(schema))
            pending.append((schema, False))
            pending += [(each, True) for each in _applied(root, schema)]
    return False


def _schemas(root: Any) -> Iterator[Any]:
    """All objects in a schema. Some of them are no schemas."""
    pending = [root]
    while pending:
        each = pending.pop()
        if isinstance(each, dict):
            yield each
            pending += each.values()
        elif isinstance(each, list):
            pending += each


def _applied(root: dict[str, Any], schema: dict[str, Any]) -> list[Any]:
    """The schemas that apply to the same value."""
    applied = [schema[keyword] for keyword in _IN_PLACE if keyword in schema]
    for keyword in _IN_PLACE_LISTS:
        listed = schema.get(keyword)
        if isinstance(listed, list):
            applied += listed
    dependent = schema.get("dependentSchemas")
    if isinstance(dependent, dict):
        applied += dependent.values()
    reference = schema.get("$ref")
    if isinstance(reference, str):
        applied.append(_target(root, reference))
    return applied
