"""The data on the wire: request, record, state, error bodies. Pure data and Prefect 3.9.1's rules;
no I/O.
"""
