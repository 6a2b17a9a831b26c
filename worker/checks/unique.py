"""``uniqueItems`` in linear time. jsonschema compares each pair of items that it can't sort: 40,000
objects take minutes.
"""

from collections.abc import Callable, Iterator
from operator import ne
from typing import Any

from jsonschema import ValidationError
from jsonschema._utils import unbool
from jsonschema.protocols import Validator


def unique_items(validator: Validator, unique: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    """The keyword, with the verdict and the message of ``jsonschema._keywords.uniqueItems``."""
    if unique and validator.is_type(instance, "array") and not are_unique(instance):
        yield ValidationError(f"{instance!r} has non-unique elements")


def are_unique(items: list[Any]) -> bool:
    """Whether no two items are equal, with the verdict of ``jsonschema._utils.uniq``.

    The library sorts the items if it can, and compares neighbours only. So ``[[1], [true], [1]]``
    counts as unique.
    """
    try:
        in_order = sorted(unbool(each) for each in items)  # type: ignore[no-untyped-call]  # as the library is
    except TypeError:
        seen: set[str] = set()
        for each in items:
            text = canonical(each)
            if text in seen:
                return False
            seen.add(text)
        return True
    texts = [canonical(each) for each in in_order] if len(in_order) > 1 else []
    return all(map(ne, texts, texts[1:]))


def canonical(value: Any) -> str:
    """A text that two JSON values share if and only if they are equal: 1 is 1.0, and not true.

    Only texts have hashes that a sender can't make collide.
    """
    pieces: list[str] = []
    _write(value, pieces.append)
    return "".join(pieces)


def _write(value: Any, put: Callable[[str], None]) -> None:
    if isinstance(value, str):
        # Write its length first, so that no text can look like another value.
        put(f"{len(value)}'{value}")
    elif value is True or value is False or value is None:
        put(str(value))
    elif isinstance(value, (int, float)):
        put(_number(value))
    elif isinstance(value, dict):
        put("{")
        for name in sorted(value):
            put(f"{len(name)}'{name}")
            _write(value[name], put)
        put("}")
    else:
        put("[")
        for each in value:
            _write(each, put)
        put("]")


def _number(value: int | float) -> str:
    if isinstance(value, float):
        if not value.is_integer():
            # The JSON reader returns the same NaN object each time, so it counts as equal.
            return f"{value!r};"
        value = int(value)
    # In hexadecimal: Python limits the number of decimal digits.
    return f"{value:x};"
