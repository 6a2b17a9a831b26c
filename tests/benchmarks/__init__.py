"""Comparisons of the worker with other ways to create runs, for ``make bench``."""
