"""A worker that holds deliveries and waits for the confirms of replies for seconds instead of
minutes.
"""

import os

from worker.cli import app
from worker.line import create, giving_up, settle

if __name__ == "__main__":
    create.HOLD_SECONDS = 1.0
    giving_up.REPLY_SECONDS = 1.0
    giving_up.LONE_REPLY_SECONDS = float(os.environ.get("LONE_REPLY_SECONDS", "10"))
    settle.HANGING_SECONDS = 0.2
    app(["run"])
