"""The events of new runs: what they say, the outbox, and the emitter that hands them to Prefect's
API.
"""
