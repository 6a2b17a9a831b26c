"""Makes other people's text safe to print: it can't control the terminal, begin a line or change
its reading order.
"""

import json


def printable(text: str, keep: str = "") -> str:
    """Escape, in Python's form, Unicode's "other" and "separator" characters: control characters
    (U+009B begins a terminal's command), marks of direction (U+202E), line separators (U+2028),
    zero width, lone surrogates.

    Args:
        keep: characters to keep, such as a line break.
    """
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() or each in keep else each.encode("unicode_escape").decode()
        for each in text
    )


def printable_json(text: str) -> str:
    """The same for JSON, whose value does not change: apart from line breaks, such characters occur
    in strings only.
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() or each == "\n" else json.dumps(each)[1:-1] for each in text)
