"""Tries to break each guarantee on real servers."""
