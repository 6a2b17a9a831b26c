"""The page of settings, made from ``worker.settings.Settings``: ``python -m
tests.support.settings_page > deploy/docs/settings.md``.
"""

from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le
from pydantic.fields import FieldInfo

from worker.settings import PREFIX, Settings

HEAD = """\
# Settings

<!-- Made by 'python -m tests.support.settings_page > deploy/docs/settings.md'. -->

A setting is an environment variable, or a line of the same form in a file `.env` in the current
folder. Each is an option of `flow-run-worker run` too, and some are options of other commands. An
option goes before the environment, and the environment before `.env`.

- An empty variable counts as not set. Blanks and line breaks at the ends are removed.
- A wrong value ends the command with exit code 2 and a line that names the setting.
- The log and `doctor` name variables that begin with WORKER_ and are no settings.

| variable | default | values | meaning |
| --- | --- | --- | --- |
"""

TAIL = """
**Passwords** stand in the two URLs and in the auth string, or in the files that are named. In a
URL's user name, password or virtual host, write / ? # @ : as `%2F %3F %23 %40 %3A`. [Rights and
security](rights-and-security.md) has the rest.

**Queue names.** `WORKER_QUEUE` gives the other names. The dead-letter queue is NAME`.dead`. If the
name has a dot, the exchange is the part before the last dot, and the routing key the part after it.

**Memory.** [Sizing](sizing.md) has the size of a worker, and the settings that change it.
"""

UNITS = {"MiB": 1024 * 1024, "KiB": 1024}


def page() -> str:
    """The whole page, as it is committed."""
    rows = (
        f"| `{PREFIX}{name.upper()}` | {_default(field.default)} | {_values(field)} | {_meaning(field)} |\n"
        for name, field in Settings.model_fields.items()
    )
    return HEAD + "".join(rows) + TAIL


def _default(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    for unit, size in UNITS.items():
        if isinstance(value, int) and value >= size and value % size == 0:
            return f"`{value}` ({value // size} {unit})"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def _values(field: FieldInfo) -> str:
    annotation: Any = field.annotation
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(annotation))
    if annotation is bool:
        return "`true`, `false`"
    if annotation not in (int, float):
        return "text"
    above = next((each.gt for each in field.metadata if isinstance(each, Gt)), None)
    low = next((each.ge for each in field.metadata if isinstance(each, Ge)), None)
    high = next((each.le for each in field.metadata if isinstance(each, Le)), None)
    kind = "whole number" if annotation is int else "number"
    if above is not None:
        return f"{kind}, above {above}"
    return f"{kind}, {low} to {high}" if high is not None else f"{kind}, from {low}"


def _meaning(field: FieldInfo) -> str:
    return (field.description or "").replace("|", "\\|")


if __name__ == "__main__":
    print(page(), end="")
