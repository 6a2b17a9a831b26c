"""``python -m worker``: the same as the ``flow-run-worker`` command."""

from worker.cli import main

if __name__ == "__main__":
    main()
