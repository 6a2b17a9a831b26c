"""A worker that holds deliveries, and waits for the confirms of replies, for seconds: what else
takes minutes to be seen.
"""

import os

from worker import giving_up, settlement
from worker.cli import app
from worker.line import create

if __name__ == "__main__":
    create.HOLD_SECONDS = 1.0
    giving_up.REPLY_SECONDS = 1.0
    giving_up.LONE_REPLY_SECONDS = float(os.environ.get("LONE_REPLY_SECONDS", "10"))
    settlement.HANGING_SECONDS = 0.2
    app(["run"])
