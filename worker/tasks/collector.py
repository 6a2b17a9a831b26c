"""Keeps Python's garbage collector from searching where it finds nothing."""

import gc


def pause_collector() -> None:
    """Stop it while modules are imported, until :func:`resume_collector`. It would walk all of them
    several times, which takes a fifth of a command's start.
    """
    gc.disable()


def resume_collector() -> None:
    """Start it again. It ignores all objects made so far: modules stay."""
    gc.freeze()
    gc.enable()


def relieve_collector() -> None:
    """Run it less often. It ignores all objects made so far.

    Requests make no reference cycles, so it finds little, and walking all modules and schemas each
    time costs more than it gains. The page of measurements has the gain.
    """
    resume_collector()
    gc.set_threshold(20_000, 20, 20)
