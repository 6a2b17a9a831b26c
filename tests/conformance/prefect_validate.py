"""Checks values against schemas with Prefect's own code, in Prefect's interpreter. It reads lines
of JSON, ``[schema, value]``, and writes a verdict and a message for each.
"""

import json
import signal
import sys
from typing import Any

# Seconds for one check. Slower ones are not compared.
PATIENCE = 2


def main() -> None:
    """Answer until the input ends."""
    from prefect.utilities.schema_tools.validation import (
        CircularSchemaRefError,
        ValidationError,
        validate,
    )

    def found(schema: Any, value: Any) -> tuple[str, str]:
        try:
            validate(value, schema, raise_on_error=True)
        except ValidationError as error:
            return "invalid", str(error)
        except CircularSchemaRefError:
            return "circular", ""
        except TimeoutError:
            return "slow", ""
        except Exception as error:
            return "broken", repr(error)
        except BaseException as error:
            # A recursion that ends within rpds is a Rust panic.
            if type(error).__name__ != "PanicException":
                raise
            return "broken", "panic"
        return "fits", ""

    def too_slow(*_: object) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, too_slow)
    print("ready", flush=True)
    for line in sys.stdin:
        signal.alarm(PATIENCE)
        try:
            answer = found(*json.loads(line))
        except TimeoutError:
            answer = "slow", ""
        signal.alarm(0)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
