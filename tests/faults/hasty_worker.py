"""A worker that holds deliveries and waits for the confirms of replies for seconds instead of
minutes.
"""

import os
from functools import partial

from worker import service
from worker.cli import app
from worker.line.patience import Patience

if __name__ == "__main__":
    lone_reply = float(os.environ.get("LONE_REPLY_SECONDS", "10"))
    patience = Patience(database=1.0, reply=1.0, lone_reply=lone_reply, hanging=0.2)
    service.serve = partial(service.serve, patience=patience)
    app(["run"])
