"""How long events wait for Prefect's API and for the broker, and how often they are tried: one
table.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Patience:
    """Times in seconds, and a number of tries. Each default has its reason here.

    Attributes:
        answer: the longest request, from the connection to the end of the answer. A server takes a
            tenth of a second for 200 events.
        pause: the longest pause between two requests.
        tries_together: failures of the API before the events are tried in parts. With their pauses
            they take 11 to 23 seconds, in which most servers have restarted.
        hold: messages are held for this time while the API is down. Then they return to the outbox:
            another worker may reach it. The broker's consumer timeout (30 minutes by default) would
            close the channel.
        stop: the longest wait for the current request when the worker stops.
        count: the time between two counts of the outbox.
    """

    answer: float = 30.0
    pause: float = 10.0
    tries_together: int = 8
    hold: float = 600.0
    stop: float = 5.0
    count: float = 5.0


PATIENCE = Patience()
