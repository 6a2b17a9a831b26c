"""Lists the errors of a request as pydantic and FastAPI do. Decides nothing."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from math import isfinite
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from .errors import MAX_ERRORS
from .kinds import KINDS
from .policy import FlowRunPolicy
from .state import StateCreate, StateDetails

# Characters of a name that an error shows for text that can't be stored.
_MAX_PLACE = 100

# The types of text, and of what may hold some.
_TEXTS = frozenset((str, list, dict))
# Entries of a list whose types are not worth a look. A guess.
_FEW = 8

# The types of a label's value.
_LABELS = (bool, int, float, str)

_MODELS: Sequence[type[BaseModel]] = (
    *(kind.model for kind in KINDS),
    StateCreate,
    StateDetails,
    FlowRunPolicy,
)
_FIELDS = frozenset(name for model in _MODELS for name in model.model_fields)


def located(error: ValidationError, *location: str) -> Iterator[dict[str, Any]]:
    """Pydantic's errors as FastAPI prints them: with a location in front, and with exceptions as
    empty objects.
    """
    for each in _without_other_kinds(error.errors(include_url=False)):
        found: dict[str, Any] = {**each, "loc": [*location, *each["loc"]]}
        if "ctx" in found:
            found["ctx"] = {
                name: {} if isinstance(value, Exception) else value for name, value in found["ctx"].items()
            }
        yield found


def _without_other_kinds(errors: Sequence[ErrorDetails]) -> Iterator[ErrorDetails]:
    """Report a label that is NaN or infinite once: drop the errors for the other types."""
    numbers = {each["loc"][:-1] for each in errors if each["type"] == "finite_number"}
    for each in errors:
        *label, kind = each["loc"] or ("",)
        if kind not in ("bool", "int", "float", "str") or tuple(label) not in numbers:
            yield each
        elif kind == "float":
            yield {**each, "loc": tuple(label)}


def without_most_errors(content: Any) -> tuple[Any, bool]:
    """Cut a body that has very many errors. Returns the body, and whether it was cut. Pydantic
    takes 0.2 seconds for a megabyte of wrong labels, as it tries each type on each label.
    """
    if not isinstance(content, dict):
        return content, False
    cut = {
        "labels": _until_many(content.get("labels"), _LABELS),
        "tags": _until_many(content.get("tags"), (str,)),
    }
    policy = content.get("empirical_policy")
    if isinstance(policy, dict):
        keys = _until_many(policy.get("pause_keys"), (str,))
        cut["empirical_policy"] = None if keys is None else {**policy, "pause_keys": keys}
    found = {name: value for name, value in cut.items() if value is not None}
    return ({**content, **found}, True) if found else (content, False)


def _until_many(value: Any, kinds: tuple[type, ...]) -> Any:
    """The shortest beginning of a list or an object that has more than ``MAX_ERRORS`` errors. None
    if there are fewer.
    """
    if not isinstance(value, (list, dict)) or len(value) <= MAX_ERRORS:
        return None
    each = enumerate(value.values() if isinstance(value, dict) else value)
    wrong = (
        place
        for place, entry in each
        if type(entry) not in kinds or (type(entry) is float and not isfinite(entry))
    )
    end = next(islice(wrong, MAX_ERRORS, None), len(value))
    if end == len(value):
        return None
    return dict(islice(value.items(), end + 1)) if isinstance(value, dict) else value[: end + 1]


def first_errors(
    error: ValidationError, content: Any, body: TypeAdapter[Any], limit: int, *, more: bool = False
) -> Iterator[dict[str, Any]]:
    """The first of very many errors, and their number. Pydantic can only write all of them, which
    takes seconds and hundreds of megabytes for a large body. So validate the body's beginning
    again.

    Args:
        limit: for the parameters, as :func:`worker.contract.request.limit_to_check` returns it.
        more: whether errors were already cut before.
    """
    try:
        body.validate_python(_beginning(content), context=limit)
    except ValidationError as of_beginning:
        yield from islice(located(of_beginning, "body"), MAX_ERRORS)
    count = f"more than {MAX_ERRORS}" if more else f"{error.error_count():,}"
    message = f"There are {count} errors, not all of which are listed"
    yield {"type": "too_many_errors", "loc": ["body"], "msg": message, "input": None}


def _beginning(value: Any, levels: int = 3) -> Any:
    """A body with all its fields, but few entries of its lists and objects. No model has more
    levels.
    """
    if isinstance(value, list):
        return value[:MAX_ERRORS]
    if isinstance(value, dict) and levels:
        others = islice((name for name in value if name not in _FIELDS), MAX_ERRORS)
        return {name: _beginning(value[name], levels - 1) for name in (*(_FIELDS & value.keys()), *others)}
    return value


def unstorable(content: Any) -> Sequence[dict[str, Any]]:
    """The first texts with a character that no database stores; Prefect answers 503 to them."""
    found: list[dict[str, Any]] = []
    if isinstance(content, (dict, list)):
        with contextlib.suppress(_Enough):
            _note_unstorable(content, ["body"], found)
    return found


class _Enough(Exception):
    """As many errors were found as are listed."""


def _note_unstorable(
    value: dict[str, Any] | list[Any], place: list[str | int], found: list[dict[str, Any]]
) -> None:
    # A megabyte may have half a million values: as few steps for each as can be.
    if type(value) is list and len(value) > _FEW and _TEXTS.isdisjoint(map(type, value)):
        return
    entries: Iterable[tuple[str | int, Any]] = value.items() if type(value) is dict else enumerate(value)
    for name, each in entries:
        if type(name) is str and not _is_storable(name):
            _note(found, [*place, name, "[key]"], name)
        kind = type(each)
        if kind is str:
            if not _is_storable(each):
                _note(found, [*place, name], each)
        elif each and (kind is list or kind is dict):
            place.append(name)
            _note_unstorable(each, place, found)
            place.pop()


def _note(found: list[dict[str, Any]], place: list[str | int], text: str) -> None:
    error = {
        "type": "string_unicode",
        "loc": [part if isinstance(part, int) else part[:_MAX_PLACE] for part in place],
        "msg": "Input should not contain NUL characters or unpaired surrogates: they cannot be stored",
        "input": text,
    }
    found.append(error)
    if len(found) == MAX_ERRORS:
        raise _Enough


def _is_storable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text
