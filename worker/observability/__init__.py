"""The worker's logs, metrics, traces and side port."""
