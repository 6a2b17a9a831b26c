"""The checks that the worker and the separate process make: of parameters against a deployment's
schema, and of job variables against a work pool's base job template.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol
from uuid import UUID

from .ordinary import Cost, NotOrdinary, takes_less
from .schemas import CIRCULAR, Invalid, Schema, Unusable

Kind = Literal["parameters", "job variables", "template"]

# Longest rendered template, in characters. Prefect allows 512 KiB of parameters.
TEXT_MAX = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of a check.

    Attributes:
        outcome: ``unusable`` means a bad schema, ``costly`` a check that was not made or was ended,
            ``text`` a rendered template.
        message: the error in Prefect's words, or the rendered text.
        references: the number of a template's block references before the error. None means all.
    """

    outcome: Literal["fits", "invalid", "unusable", "costly", "text"]
    message: str = ""
    references: int | None = None


FITS = Verdict("fits")


class Prepared(Protocol):
    """A prepared schema."""

    def takes_less(self, value: Any, microseconds: float) -> bool:
        """Whether a value's check is sure to take less than this time."""

    def verdict(self, value: Any) -> Verdict:
        """Check a value."""


class ParameterSchema:
    """A deployment's schema of parameters.

    Args:
        text: JSON.
        at_once: the most microseconds that preparing may take. None means no limit.

    Raises:
        NotOrdinary: preparing takes longer than that, or an unknown time.
    """

    def __init__(self, text: str, *, at_once: float | None = None) -> None:
        self._schema: Schema | None = None
        self._wrong = FITS
        try:
            self._schema = Schema(_read(text), ordinary=at_once is not None)
        except (Invalid, Unusable) as wrong:
            self._wrong = _verdict_of(wrong)

    def takes_less(self, value: Any, microseconds: float) -> bool:
        """See :class:`Prepared`."""
        return self._schema is None or _takes_less(self._schema.cost, value, microseconds)

    def verdict(self, value: Any) -> Verdict:
        """See :class:`Prepared`. The value is the parameters."""
        return self._wrong if self._schema is None else _checked(self._schema, value)


class JobTemplate:
    """A base job template, with the defaults that fit it (``_get_base_config_defaults``). A default
    that does not fit is dropped. Then nothing is required, as the dropped default may have been.

    Args, Raises: as for :class:`ParameterSchema`.
    """

    def __init__(self, text: str, *, at_once: float | None = None) -> None:
        self._defaults: dict[str, Any] = {}
        self._schema: Schema | None = None
        self._wrong: Verdict | None = None
        self._references = 0
        try:
            if variables_of(text):
                self._schema = self._prepare(text, at_once)
        except (Invalid, Unusable) as wrong:
            self._wrong = _verdict_of(wrong, self._references)

    def _prepare(self, text: str, at_once: float | None) -> Schema:
        ordinary = at_once is not None
        # A Schema changes its JSON, so read it again each time: that is quicker than a copy.
        Schema(variables_of(text), mended=False, ordinary=ordinary)
        optional = Schema(variables_of(text), mended=False, required=False, ordinary=ordinary)
        blocks = block_references(text)
        defaults = defaults_of(variables_of(text))
        if at_once is not None and not _takes_less(optional.cost, dict(defaults), at_once):
            raise NotOrdinary
        all_fit = True
        for name, default in defaults:
            if isinstance(default, dict) and "$ref" in default:
                self._references += name in blocks
            elif optional.fits({name: default}):
                self._defaults[name] = default
            else:
                all_fit = False
        return Schema(
            variables_of(text), none_for_default=True, required=all_fit, given=blocks, ordinary=ordinary
        )

    def takes_less(self, value: Sequence[Any], microseconds: float) -> bool:
        """See :class:`Prepared`."""
        together = [self._defaults, *value]
        return self._schema is None or _takes_less(self._schema.cost, together, microseconds)

    def verdict(self, value: Sequence[Any]) -> Verdict:
        """See :class:`Prepared`. The value is a list of variables: each overrides those before it,
        and all override the defaults.
        """
        if self._schema is None:
            return self._wrong or FITS
        together = dict(self._defaults)
        for each in value:
            if isinstance(each, dict):
                together |= each
        return _checked(self._schema, together)


PREPARE: Mapping[Kind, Callable[..., Prepared]] = {
    "parameters": ParameterSchema,
    "job variables": JobTemplate,
}


def variables_of(template: str) -> Any:
    """The ``variables`` of a base job template, or None."""
    read = _read(template)
    return read.get("variables") if isinstance(read, dict) else None


def defaults_of(variables: Any) -> Sequence[tuple[str, Any]]:
    """The names and defaults of a template's variables."""
    properties = variables.get("properties") if isinstance(variables, dict) else None
    return [
        (name, field["default"])
        for name, field in (properties.items() if isinstance(properties, dict) else ())
        if isinstance(field, dict) and "default" in field
    ]


def block_references(template: str) -> dict[str, UUID | str]:
    """The block documents that a template takes defaults from, by variable. Their content counts as
    valid: Prefect encrypts it.
    """
    if "block_document_id" not in template:  # most have none
        return {}
    found: dict[str, UUID | str] = {}
    for name, default in defaults_of(variables_of(template)):
        reference = default.get("$ref") if isinstance(default, dict) else None
        block = reference.get("block_document_id") if isinstance(reference, dict) else None
        if block is not None:
            found[name] = _block_id(block)
    return found


def _block_id(value: Any) -> UUID | str:
    """The id, or the malformed value as a text, which matches no block."""
    try:
        return UUID(value)
    except (AttributeError, TypeError, ValueError):
        return str(value)


def _read(text: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError:
        raise Unusable(CIRCULAR) from None


def _takes_less(cost: Cost | None, value: Any, microseconds: float) -> bool:
    return cost is not None and takes_less(cost, value, microseconds)


def _checked(schema: Schema, value: Any) -> Verdict:
    try:
        schema.check(value)
    except (Invalid, Unusable) as wrong:
        return _verdict_of(wrong)
    return FITS


def _verdict_of(wrong: Invalid | Unusable, references: int | None = None) -> Verdict:
    return Verdict("invalid" if isinstance(wrong, Invalid) else "unusable", str(wrong), references)
