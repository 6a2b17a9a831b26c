"""What is wrong with a request, listed as pydantic and FastAPI list it; decides nothing."""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from .deployment_request import CreateFlowRunFromDeployment
from .errors import MAX_ERRORS
from .policy import FlowRunPolicy
from .request import CreateFlowRun
from .state import StateCreate, StateDetails

# How much of a name is shown where text cannot be stored; characters.
_MAX_PLACE = 100

_MODELS = (CreateFlowRun, CreateFlowRunFromDeployment, StateCreate, StateDetails, FlowRunPolicy)
_FIELDS = frozenset(name for model in _MODELS for name in model.model_fields)


def located(error: ValidationError, *location: str) -> Iterator[dict[str, Any]]:
    """Pydantic's errors as FastAPI prints them: under a location, and with exceptions as empty
    objects.
    """
    for each in _without_other_kinds(error.errors(include_url=False)):
        found: dict[str, Any] = {**each, "loc": [*location, *each["loc"]]}
        if "ctx" in found:
            found["ctx"] = {
                name: {} if isinstance(value, Exception) else value for name, value in found["ctx"].items()
            }
        yield found


def _without_other_kinds(errors: Sequence[ErrorDetails]) -> Iterator[ErrorDetails]:
    """For a label that is NaN or an infinity, this error alone: not that it is no text, too."""
    numbers = {each["loc"][:-1] for each in errors if each["type"] == "finite_number"}
    for each in errors:
        *label, kind = each["loc"] or ("",)
        if kind not in ("bool", "int", "float", "str") or tuple(label) not in numbers:
            yield each
        elif kind == "float":
            yield {**each, "loc": tuple(label)}


def first_errors(
    error: ValidationError, content: Any, body: TypeAdapter[Any], limit: int
) -> Iterator[dict[str, Any]]:
    """The first of very many errors, and how many there are. Pydantic can only write out all of
    them, which takes seconds and hundreds of megabytes for a large body. So the body's beginning is
    validated again.

    Args:
        limit: of the parameters, as :func:`worker.contract.request.limit_to_check` returns it.
    """
    try:
        body.validate_python(_beginning(content), context=limit)
    except ValidationError as of_beginning:
        yield from islice(located(of_beginning, "body"), MAX_ERRORS)
    message = f"There are {error.error_count():,} errors, not all of which are listed"
    yield {"type": "too_many_errors", "loc": ["body"], "msg": message, "input": None}


def _beginning(value: Any, levels: int = 3) -> Any:
    """A body with all of its fields, and few entries of its lists and objects; no model has more
    levels.
    """
    if isinstance(value, list):
        return value[:MAX_ERRORS]
    if isinstance(value, dict) and levels:
        others = islice((name for name in value if name not in _FIELDS), MAX_ERRORS)
        return {name: _beginning(value[name], levels - 1) for name in (*(_FIELDS & value.keys()), *others)}
    return value


def unstorable(content: Any) -> Iterator[dict[str, Any]]:
    """Every text with a character that no database stores; Prefect answers 503 to them."""
    place: list[str | int] = ["body"]
    pending = [_entries(content)]
    while pending:
        for name, value in pending[-1]:
            if not _is_storable(name):
                yield _not_stored([*place, name, "[key]"], name)
            if not _is_storable(value):
                yield _not_stored([*place, name], value)
            if isinstance(value, (dict, list)):
                place.append(name)
                pending.append(_entries(value))
                break
        else:
            pending.pop()
            place.pop()


def _entries(value: Any) -> Iterator[tuple[str | int, Any]]:
    if isinstance(value, dict):
        return iter(value.items())
    return iter(enumerate(value)) if isinstance(value, list) else iter(())


def _not_stored(place: list[str | int], text: Any) -> dict[str, Any]:
    return {
        "type": "string_unicode",
        "loc": [part if isinstance(part, int) else part[:_MAX_PLACE] for part in place],
        "msg": "Input should not contain NUL characters or unpaired surrogates: they cannot be stored",
        "input": text,
    }


def _is_storable(value: Any) -> bool:
    if not isinstance(value, str):
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in value
