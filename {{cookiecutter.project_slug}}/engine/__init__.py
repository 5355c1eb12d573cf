"""The engine, the same in every project: it names no dataset and no network, and imports neither data nor model."""

from engine.lightning_compat import defer_scipy_signal

defer_scipy_signal()  # before anything imports torchmetrics
