"""Tells the states of runs to others: reads them from the database as they are committed, publishes
them, and keeps at the broker how far it came.
"""
