"""The fuzzer of the line: ``make fuzz``, or with libFuzzer's options ``python -m
tests.fuzz.fuzz_line -max_total_time=60 CORPUS``.
"""

import sys

import atheris

with atheris.instrument_imports(include=["worker", "pamqp", "tests.fuzz.line"]):
    from tests.fuzz.line import message_of, serve


def one_input(data: bytes) -> None:
    """Two bytes of property flags, two of the properties' length, the properties, the body."""
    flags, length = int.from_bytes(data[:2]) & 0xFFFC, int.from_bytes(data[2:4])
    serve(message_of(flags, data[4 : 4 + length], data[4 + length :]))


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
