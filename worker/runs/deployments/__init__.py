"""From a request and its deployment to a new run, or to the refusal that Prefect's endpoint
answers. Pure: what it needs to know is looked up by the store.
"""
