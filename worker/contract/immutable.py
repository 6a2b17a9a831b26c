"""Dataclasses that nobody changes, without the price of that at run time."""

from dataclasses import dataclass, field
from typing import TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def immutable(cls: type[T]) -> type[T]:
    """A dataclass with slots that mypy takes for frozen; for what is made for each request.

    ``frozen=True`` makes each field's value go in by ``object.__setattr__``: with seven fields, one
    takes five times as long to make.
    """
    return dataclass(slots=True)(cls)
