"""Text that others wrote, made safe to print: it neither steers a terminal, nor begins a line, nor
reads in another order than it is stored.
"""

import json


def printable(text: str, keep: str = "") -> str:
    """Escape, as Python writes them, what Unicode counts as other or as a separator: control
    characters (U+009B begins a terminal's command), marks of direction (U+202E), line separators
    (U+2028), zero width, lone surrogates.

    Args:
        keep: characters that stay, such as a line break.
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() or each in keep else _escaped(each) for each in text)


def printable_json(text: str) -> str:
    """The same for JSON, which stays the same value: such characters stand in strings only, but for
    its own line breaks.
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() or each == "\n" else json.dumps(each)[1:-1] for each in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
