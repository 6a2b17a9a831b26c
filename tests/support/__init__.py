"""Runs the project on a developer's machine: private servers, demo, foreground worker."""
