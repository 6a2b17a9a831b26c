"""Makes two answers comparable: values that must differ are replaced by placeholders."""

import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

_TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")
_IDS = {("id",), ("state_id",), ("state", "id"), ("state", "state_details", "flow_run_id")}
_ESTIMATES = {("estimated_run_time",), ("estimated_start_time_delta",)}
# Errors and fields of the producer are compared as they are.
_VERBATIM = {"parameters", "context", "request_body", "exception_detail", "job_variables", "labels", "tags"}
# How long a request may take on a busy machine.
_NOW = timedelta(seconds=60)


def comparable(answer: Any, now: datetime) -> Any:
    """An answer with placeholders for ids, random names, current times and estimates. It also
    checks the relations between them.
    """
    if not isinstance(answer, dict) or "state_id" not in answer:
        return _replaced(answer, now, ())
    assert answer["state"] is None or answer["state_id"] == answer["state"]["id"]
    if answer["state"] is not None:
        assert answer["state"]["state_details"]["flow_run_id"] == answer["id"]
        timestamp = _instant(answer["state"]["timestamp"])
        assert timestamp <= _instant(answer["created"]) <= _instant(answer["updated"]) + _NOW
    replaced = _replaced(answer, now, ())
    expected = answer["expected_start_time"]
    if (
        expected is not None
        and abs(answer["estimated_start_time_delta"] - (now - _instant(expected)).total_seconds())
        < _NOW.total_seconds()
    ):
        replaced["estimated_start_time_delta"] = "ESTIMATE"
    # Two words count as a random name; names that were sent are compared as they are.
    if re.fullmatch(r"[a-z]+-[a-z]+", replaced["name"]):
        replaced["name"] = "RANDOM NAME"
    return replaced


def differences(prefect: Any, ours: Any, where: str = "") -> Iterator[str]:
    """Every place where two comparable answers differ."""
    if isinstance(prefect, dict) and isinstance(ours, dict):
        for key in sorted(prefect.keys() | ours.keys()):
            if key not in ours:
                yield f"{where}.{key}: only Prefect has it: {prefect[key]!r}"
            elif key not in prefect:
                yield f"{where}.{key}: only we have it: {ours[key]!r}"
            else:
                yield from differences(prefect[key], ours[key], f"{where}.{key}")
    elif isinstance(prefect, list) and isinstance(ours, list) and len(prefect) == len(ours):
        for index, (left, right) in enumerate(zip(prefect, ours, strict=True)):
            yield from differences(left, right, f"{where}[{index}]")
    elif (
        isinstance(prefect, float) is not isinstance(ours, float) and _is_number(prefect) and _is_number(ours)
    ):
        # PostgreSQL's JSON returns 1e16 as 10000000000000000, which is the same number.
        if float(prefect) != float(ours):
            yield f"{where}: Prefect {prefect!r}, we {ours!r}"
    elif prefect != ours or type(prefect) is not type(ours):
        yield f"{where}: Prefect {prefect!r}, we {ours!r}"


def _replaced(value: Any, now: datetime, where: tuple[str, ...]) -> Any:
    if where and where[0] in _VERBATIM:
        return value
    if isinstance(value, dict):
        return {key: _replaced(each, now, (*where, key)) for key, each in value.items()}
    if isinstance(value, list):
        # Prefect has a set here, in no order.
        return (
            sorted(value)
            if where[-1:] == ("pause_keys",)
            else [_replaced(each, now, where) for each in value]
        )
    if where in _IDS:
        return "ID"
    if where in _ESTIMATES:
        return "ESTIMATE" if 0 <= value < _NOW.total_seconds() else value
    if isinstance(value, str) and _TIMESTAMP.fullmatch(value):
        return "NOW" if abs(_instant(value) - now) < _NOW else value
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _instant(text: str) -> datetime:
    return datetime.fromisoformat(text)
