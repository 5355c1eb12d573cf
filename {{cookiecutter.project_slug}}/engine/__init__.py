"""The engine, which names no dataset and no network, and imports neither data nor model.

Your own flags and callbacks go into engine/features, your own actions into engine/commands: a file each.
"""

from engine.lightning_compat import defer_dynamo, defer_scipy_signal

defer_scipy_signal()  # before anything imports torchmetrics
defer_dynamo()  # and torch
