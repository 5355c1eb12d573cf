"""The engine, which names no dataset and no network, and imports neither data nor model.

Your own flags and callbacks go into engine/features, your own actions into engine/commands: a file each.
"""

import os

from engine.lightning_compat import defer_dynamo, defer_scipy_signal

defer_scipy_signal()  # before anything imports torchmetrics
defer_dynamo()  # and torch
if "OMP_WAIT_POLICY" not in os.environ:  # before torch: its idle threads sleep after 0.3 ms, by default after 14
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
