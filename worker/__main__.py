"""The console script ``flow-run-worker``, and ``python -m worker``: starts the command line."""

from worker.tasks.collector import pause_collector


def main() -> None:
    """Run the command that the arguments name."""
    pause_collector()
    from worker.cli import main

    main()


if __name__ == "__main__":
    main()
