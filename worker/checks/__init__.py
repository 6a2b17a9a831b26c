"""Checks whose cost depends on a request or a deployment: JSON Schemas and templates. Cheap ones
are made at once, all others in a separate process that can be ended. Knows no requests.
"""
