"""Python's garbage collector, kept from a process that does one thing many times."""

import gc


def relieve_collector() -> None:
    """Let it run less often, and pass over what is there by now.

    Requests make no reference cycles, so there is little for it to find; walking all modules and
    schemas each time costs more than it gains. What it saves is in the page of
    measurements.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
