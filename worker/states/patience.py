"""How far back states are looked for, how long they wait, and how many are read: one table."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Patience:
    """Times in seconds, and numbers. Each default has its reason here.

    Attributes:
        ahead: states of clocks that are this much ahead are published at once, later ones when
            their time has come.
        again: at these ages, states are read again: those of clocks that are behind, and of short
            transactions. The second age is the longest that is read each time in quiet times: a
            clock may be 5 seconds behind.
        late: a state is visible at this age, unless its transaction was writing before. The
            statement that writes it waits at most 60 seconds for a lock, in Prefect with SQLite and
            in this worker. The rest is for clocks.
        forgotten: a transaction that is open for this long no longer holds back the others' states.
            Its states are looked for once it has ended. Prefect's take seconds.
        mark: the time between two marks among PostgreSQL's transactions, while any end. Each takes
            one of its two billion ids.
        window: published states that are read again each time. A thousand take a millisecond.
        page: states that are read at once, without their runs.
        told: ids of published states in memory, 16 bytes each.
        seconds: seconds of published states that a cursor describes, 30 bytes each.
        last: ids of published states that a cursor has, 40 bytes each. Without them, states of its
            last second would be published twice.
        first: a worker offers to begin without a cursor if it gets none for this long.
        settle: other cursors may arrive for this long after the first.
        cursor: the time between two cursors while states are published. After a crash, states since
            the last cursor are published twice.
        renewal: a cursor is published again at this age: the broker's consumer timeout, 30 minutes
            by default and a minute at the least, would end the channel that holds it.
        hold: the cursor returns to the broker if the database is away for this long: another worker
            may reach it.
        refused: a state that a bound queue refuses is published again for this long, then given up.
            One full queue must not hold back everyone.
        stop: the longest wait for the current states when the worker stops.
    """

    ahead: float = 10.0
    again: tuple[float, float, float] = (2.0, 8.0, 30.0)
    late: float = 90.0
    forgotten: float = 600.0
    mark: float = 1.0
    window: int = 1000
    page: int = 5000
    told: int = 1_000_000
    seconds: int = 1000
    last: int = 200
    first: float = 5.0
    settle: float = 0.2
    cursor: float = 1.0
    renewal: float = 40.0
    hold: float = 600.0
    refused: float = 60.0
    stop: float = 5.0


PATIENCE = Patience()
