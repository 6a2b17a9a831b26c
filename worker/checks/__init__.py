"""Checks whose cost a request or a deployment decides: JSON Schemas and templates. Cheap ones are
made at once, all others in a process of their own that can be ended. Knows no requests.
"""
