"""Text of others does not steer a terminal, and JSON stays the same value."""

import json
import sys

import pytest

from worker.contract.printable import printable, printable_json

STEERING = [
    "\x1b[2J",
    "\x9b2J",
    "\u202e",
    "\u2028",
    "\u2066",
    "\u200b",
    "\ufeff",
    "\x07",
    "\r\n",
    "\U000e0041",
]


@pytest.mark.parametrize("text", STEERING, ids=ascii)
def test_what_steers_is_escaped_and_all_else_stays(text: str) -> None:
    shown = printable(f"Zoë {text} 漢字")
    assert shown.isprintable()
    assert shown.startswith("Zoë ")
    assert shown.endswith(" 漢字")
    assert shown.encode("ascii", "backslashreplace").decode("unicode_escape") == f"Zoë {text} 漢字"


def test_lone_surrogates_can_be_printed() -> None:
    assert printable("a\ud800b") == "a\\ud800b"


def test_line_breaks_stay_where_they_may() -> None:
    assert printable("a\nb\x9b", keep="\n") == "a\nb\\x9b"


def test_json_is_the_same_value_and_has_no_such_character() -> None:
    every = [chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000]
    text = json.dumps({"all": "".join(every), "key\u202e": "\\\u2028"}, ensure_ascii=False, indent=2)
    shown = printable_json(text)
    assert json.loads(shown) == json.loads(text)
    assert all(line.isprintable() for line in shown.split("\n"))
