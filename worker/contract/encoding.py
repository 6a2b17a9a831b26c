"""Writes JSON: with orjson, or with the standard library what orjson can't write (integers over 64
bits, half surrogates, deep nesting).
"""

import json
from datetime import datetime
from typing import Any

import orjson


def dumps(value: Any) -> bytes:
    """A value as JSON in UTF-8: UTC as ``Z``, no NaN and no infinities (they become null, as
    Prefect stores them).
    """
    try:
        return orjson.dumps(value, default=_plain, option=orjson.OPT_UTC_Z)
    except TypeError:
        # Read and written again, since only reading can turn NaN and the infinities into null.
        text = json.dumps(value, default=_plain)
        return json.dumps(json.loads(text, parse_constant=lambda _: None), separators=(",", ":")).encode()


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    return str(value)
