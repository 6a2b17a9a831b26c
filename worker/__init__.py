"""Creates Prefect flow runs from a RabbitMQ queue: each request once, each answered as Prefect's
API would.
"""

__version__ = "0.3.0"
