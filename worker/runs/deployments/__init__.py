"""Makes a new run from a request and its deployment, or refuses it as Prefect's endpoint does.
Pure: the store does the look-ups.
"""
