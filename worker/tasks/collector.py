"""Python's garbage collector, kept from where it finds nothing."""

import gc


def pause_collector() -> None:
    """Let it rest while modules are imported: it walks all of them several times, which takes a
    fifth of a command's start. :func:`resume_collector` ends that.
    """
    gc.disable()


def resume_collector() -> None:
    """Let it run, and pass over what is there by now: modules stay."""
    gc.freeze()
    gc.enable()


def relieve_collector() -> None:
    """Let it run less often, and pass over what is there by now.

    Requests make no reference cycles, so there is little for it to find; walking all modules and
    schemas each time costs more than it gains. What it saves is in the page of
    measurements.
    """
    resume_collector()
    gc.set_threshold(20_000, 20, 20)
