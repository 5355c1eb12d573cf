"""Splits of a dataset, and batches in an order that a resumed run repeats."""
