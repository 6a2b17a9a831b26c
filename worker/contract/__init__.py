"""What crosses the wire: request, record, state, error bodies. Pure data and rules taken from
Prefect 3.9.1; no I/O.
"""
