"""The events of new runs: their content, the outbox, and the emitter that sends them to Prefect's
API.
"""
