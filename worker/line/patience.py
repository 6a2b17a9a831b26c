"""How long the line waits for the database and the broker, and how often it tries: one table."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Patience:
    """Times in seconds, and numbers of tries. Each default has its reason here.

    Attributes:
        database: deliveries are handed back after this time without a database: before the
            broker's consumer timeout (30 minutes by default) closes the channel. Each hand-back
            counts against the delivery limit.
        faults_together: from this many failures in a row on, each further one halves the batch: a
            single run may be ending the connection or the server. A guess.
        fault_tries: a run that makes the database fall silent or end is refused after this many
            tries. Each try is made alone, after the database was seen to write. A guess.
        hanging: most confirms come within milliseconds. Some hang, as those of a reply queue
            without a majority. They are looked for at these intervals.
        reply: a refused reply is tried again for this time. A replicated reply queue whose node
            died has another leader by then, also on a busy machine (tests/faults/test_cluster.py
            needed more than 10). A missing confirm is waited for as long if the broker confirms
            later publications: then the broker is not slow, but this queue has no majority.
        lone_reply: a missing confirm is waited for this time if no later publication is confirmed.
            The broker closes the channel over a delivery that is held for 30 minutes.
        given_up: after a reply is given up, further ones to its queue are tried only once, for this
            time.
    """

    database: float = 600.0
    faults_together: int = 3
    fault_tries: int = 5
    hanging: float = 2.0
    reply: float = 25.0
    lone_reply: float = 600.0
    given_up: float = 60.0


PATIENCE = Patience()
