"""What crosses the wire: request, record, state, error bodies. Pure data and rules taken from
Prefect 3.8.8; no I/O.
"""
