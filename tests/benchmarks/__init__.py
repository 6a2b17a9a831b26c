"""Comparisons with what a user would use instead; run by ``make bench``, never by the tests."""
