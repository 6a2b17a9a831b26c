"""Strategies for hypothesis: message properties of any producer, in AMQP's encoding."""

import struct
from collections.abc import Mapping

from hypothesis import strategies as st

from worker.amqp.properties import FLAGS, in_order, join, join_table, short_string
from worker.contract.message import is_own_header

SHORT_STRINGS = tuple(
    name for name in FLAGS if name not in ("headers", "delivery_mode", "priority", "timestamp")
)

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
_lengths = st.integers(0, 255)


def fits(name: str) -> bool:
    return len(name.encode()) <= 255


# Up to 255 bytes, including exactly 255, and empty.
short_text = text | _lengths.map("x".__mul__) | st.integers(0, 127).map("ü".__mul__)
short_strings = short_text.map(short_string)
no_utf8 = st.binary(max_size=200).map(lambda raw: raw + b"\xff")
header_names = (text | _lengths.map("n".__mul__)).filter(fits)
# Headers that a message keeps wherever it goes.
own_names = header_names.filter(is_own_header)


def counted(raw: bytes) -> bytes:
    """A short string of arbitrary bytes."""
    return bytes((len(raw),)) + raw


def number(kind: bytes, form: str, low: int, high: int) -> st.SearchStrategy[bytes]:
    return st.integers(low, high).map(lambda value: kind + struct.pack(form, value))


def sized(kind: bytes, content: bytes) -> bytes:
    return kind + struct.pack(">I", len(content)) + content


# Times read as seconds since 1970 come first, then those read as milliseconds, up to the year 9999.
readable_times = st.integers(0, 2**32 - 1) | st.integers(2**32, 253_402_300_799_000)
values = st.recursive(
    st.sampled_from([b"V", b"t\0", b"t\1"])
    | number(b"b", ">b", -(2**7), 2**7 - 1)
    | number(b"B", ">B", 0, 2**8 - 1)
    | number(b"s", ">h", -(2**15), 2**15 - 1)
    | number(b"u", ">H", 0, 2**16 - 1)
    | number(b"I", ">i", -(2**31), 2**31 - 1)
    | number(b"i", ">I", 0, 2**32 - 1)
    | number(b"l", ">q", -(2**63), 2**63 - 1)
    | st.floats(width=32).map(lambda value: b"f" + struct.pack(">f", value))
    | st.floats().map(lambda value: b"d" + struct.pack(">d", value))
    | st.tuples(st.integers(0, 255), st.integers(-(2**31), 2**31 - 1)).map(
        lambda value: b"D" + struct.pack(">Bi", *value)
    )
    | readable_times.map(lambda value: b"T" + struct.pack(">Q", value))
    | text.map(lambda value: sized(b"S", value.encode()))
    # pamqp returns text that is not UTF-8 as bytes.
    | no_utf8.map(lambda value: sized(b"S", value))
    | st.binary(max_size=40).map(lambda value: sized(b"x", value)),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda items: sized(b"A", b"".join(items)))
        | st.lists(st.tuples(header_names, inner), max_size=3).map(lambda table: b"F" + join_table(table))
    ),
    max_leaves=6,
)


def tables(names: st.SearchStrategy[str], *, min_size: int = 0) -> st.SearchStrategy[bytes]:
    """Header tables; a name may occur twice."""
    return st.lists(st.tuples(names, values), min_size=min_size, max_size=5).map(join_table)


def properties(
    *,
    strings: st.SearchStrategy[bytes] = short_strings,
    headers: st.SearchStrategy[bytes] | None = None,
    times: st.SearchStrategy[int] = readable_times,
    without: tuple[str, ...] = (),
) -> st.SearchStrategy[bytes]:
    """Flags and properties of a content header, each property present or not.

    Args:
        without: names of properties to leave out.
    """
    octets = st.integers(0, 255).map(lambda octet: bytes((octet,)))
    each: Mapping[str, st.SearchStrategy[bytes]] = {
        **dict.fromkeys(SHORT_STRINGS, strings),
        "headers": tables(own_names) if headers is None else headers,
        "delivery_mode": st.sampled_from([b"\1", b"\2"]),
        "priority": octets,
        "timestamp": times.map(lambda value: struct.pack(">Q", value)),
    }
    return st.fixed_dictionaries(
        {}, optional={name: strategy for name, strategy in each.items() if name not in without}
    ).map(lambda found: join(in_order(found)))
