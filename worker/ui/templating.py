"""Renders the pages. All shown text is escaped: markup, and characters that would hide or reverse
their neighbours.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from typing import Any

from aiohttp import web
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from worker.contract.printable import printable

STATIC = files("worker.ui") / "static"
TYPES = {
    "app.css": "text/css",
    "app.js": "text/javascript",
    "charts.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}


class Frame:
    """What all pages share.

    Args:
        values: by the names that the templates use.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values

    def page(self, name: str, status: int = 200, *, here: str, **values: Any) -> web.Response:
        """A page.

        Args:
            here: the path of the entry of the menu that it belongs to.
        """
        text = render(name, {**self._values, "here": here, **values})
        return web.Response(status=status, text=text, content_type="text/html")


def render(name: str, values: Mapping[str, Any]) -> str:
    """A page of this name."""
    return _environment().get_template(name).render(values)


@cache
def static(name: str) -> bytes | None:
    """The content of a file next to the pages."""
    return STATIC.joinpath(name).read_bytes() if name in TYPES else None


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("worker.ui"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_visible,
    )
    environment.filters |= {"number": _number, "mib": _mib, "time": _time, "bytes": _bytes, "ms": _ms}
    environment.globals["now"] = lambda: datetime.now(UTC)
    return environment


def _visible(value: Any) -> Any:
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return printable(value, keep="\n\r\t")


def _number(value: float) -> str:
    return f"{value:,.0f}"


def _mib(value: float) -> str:
    return f"{value / 1024 / 1024:,.0f} MiB"


def _bytes(value: int) -> str:
    return f"{value:,} bytes" if value < 10_000 else f"{value / 1000:,.0f} kB"


def _ms(percentiles: tuple[float, float] | None) -> str:
    return "-" if percentiles is None else f"{percentiles[0] * 1000:.1f} / {percentiles[1] * 1000:.1f} ms"


def _time(at: datetime | str | None) -> str:
    """To the second, in UTC."""
    if at is None:
        return "no time"
    if isinstance(at, datetime):
        return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S}"
    return at[:19].replace("T", " ")
