"""``flow-run-worker ui``: pages in a browser for those who run workers. They are rendered here and
served to those who have the token. Only the charts need a script.
"""
