"""What an operator sees of the worker: logs and metrics."""
